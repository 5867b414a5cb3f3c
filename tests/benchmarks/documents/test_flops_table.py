"""The FLOPs in docs/paper.md are what our counts give."""

import pytest

from benchmarks.documents import flops_table
from ptl_fast.model import flops


@pytest.mark.parametrize("lm_head", [False, True])
def test_length_gives_the_flops_that_it_was_solved_from(lm_head: bool) -> None:
    _, config, _ = flops_table.dry_run_of("llama3-8b-paper")
    tera_flops = flops.flops_per_sample(config, 777, lm_head=lm_head) / 1e12
    assert flops_table.sample_length(config, tera_flops, lm_head) == 777


def test_committed_document_is_what_the_counts_give() -> None:
    flops_table.main(["--check"])
