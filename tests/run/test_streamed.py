"""A model pruned with one layer in memory is the one that is pruned in memory."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ptl_fast.base.run_files import StreamedFolder
from ptl_fast.baselines import SCORERS
from ptl_fast.data import packing
from ptl_fast.model.families import down_projections, find_family
from ptl_fast.model.layers_on_disk import LayersOnDisk
from ptl_fast.pruning import compact, compensate, plan
from ptl_fast.pruning.schedule import Round
from ptl_fast.run import streamed
from ptl_fast.scoring import statistics
from ptl_fast.scoring.evidence import Evidence
from support.least_squares import RIDGE, long_documents
from support.models import FAMILIES, NUM_LAYERS, make_model

WIDTH = 24


@pytest.fixture
def tokens() -> packing.PackedTokens:
    return long_documents()


def in_memory(
    model: PreTrainedModel, tokens: packing.PackedTokens, scorer: str, ridge: float | None
) -> list[list[int]]:
    """Prune the model, in place, as a round does; returns the neurons that stay."""
    family = find_family(model)
    taken, grams = statistics.collect_with_grams(
        model, family, tokens, 2, extra=SCORERS[scorer].needs, ridge=ridge
    )
    evidence = Evidence(statistics=taken, model=model, family=family, seed=0, grams=grams)
    step = Round(number=1, kind="neurons", width=WIDTH, num_layers=NUM_LAYERS, recovery_share=1.0)
    decided = plan.plan_neurons(step, SCORERS[scorer].compute(evidence), None, scorer)
    assert decided.kept_neurons is not None
    compensate.compensate_(
        down_projections(model, family), grams, decided.kept_neurons, grams.means
    )
    compact.compact_(model, family, decided)
    return decided.kept_neurons


def stream(
    stored: Path,
    output: Path,
    tokens: packing.PackedTokens,
    scorer: str = "reconstruction",
    ridge: float | None = RIDGE,
) -> list[list[int]]:
    config = AutoModelForCausalLM.from_pretrained(stored).config
    source = LayersOnDisk(stored, config, torch.float32)
    work = streamed.StreamedWork(
        scorer=SCORERS[scorer], tokens=tokens, batch_size=2, width=WIDTH, ridge=ridge
    )
    return [
        each.kept_K.tolist() for each in streamed.prune_layers(source, work, output, torch.float32)
    ]


def assert_same(saved: Path, model: PreTrainedModel) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert loaded.config.intermediate_size == WIDTH
    own, other = model.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    for name in own:
        assert torch.equal(own[name], other[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_is_bit_for_bit_that_of_the_model_in_memory(
    family: str, tokens: packing.PackedTokens, tmp_path: Path
) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    kept = in_memory(model, tokens, "reconstruction", RIDGE)
    assert stream(tmp_path / "dense", tmp_path / "pruned", tokens) == kept
    assert_same(tmp_path / "pruned", model)


@pytest.mark.parametrize(
    ("scorer", "ridge"), [("activation", RIDGE), ("fluctuation", RIDGE), ("reconstruction", None)]
)
def test_other_scorers_and_a_chosen_ridge_give_the_same_too(
    scorer: str, ridge: float | None, tokens: packing.PackedTokens, tmp_path: Path
) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense")
    kept = in_memory(model, tokens, scorer, ridge)
    assert stream(tmp_path / "dense", tmp_path / "pruned", tokens, scorer, ridge) == kept
    assert_same(tmp_path / "pruned", model)


def test_hidden_states_in_files_give_the_same_and_go_with_the_walk(
    tokens: packing.PackedTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense")
    kept = in_memory(model, tokens, "reconstruction", None)
    monkeypatch.setattr(streamed, "STATES_BYTES", 0)
    assert stream(tmp_path / "dense", tmp_path / "pruned", tokens, ridge=None) == kept
    assert_same(tmp_path / "pruned", model)
    assert not (tmp_path / "pruned" / "states").exists()


@pytest.mark.parametrize("ridge", [RIDGE, None])
def test_a_killed_walk_goes_on_to_the_same_weights(
    ridge: float | None,
    tokens: packing.PackedTokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model("qwen2").save_pretrained(tmp_path / "dense")
    whole = stream(tmp_path / "dense", tmp_path / "whole", tokens, ridge=ridge)
    eliminated: list[int] = []

    def die_at_the_third(*args: object) -> None:
        eliminated.append(1)
        if len(eliminated) == 3:
            raise KeyboardInterrupt
        compensate.compensate_(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(streamed, "compensate_", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "dense", tmp_path / "killed", tokens, ridge=ridge)
    assert not StreamedFolder(tmp_path / "killed").is_complete()
    assert stream(tmp_path / "dense", tmp_path / "killed", tokens, ridge=ridge) == whole
    # two layers were finished before, and three after
    assert len(eliminated) == 3 + NUM_LAYERS - 2
    assert_same(tmp_path / "killed", AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))


@pytest.mark.parametrize("scorer", ["gradient", "random", "llm-pruner", "reference"])
def test_scorers_that_need_the_whole_model_are_refused(scorer: str) -> None:
    with pytest.raises(ValueError, match=f"scorer {scorer} needs the whole model"):
        streamed.check_scorer(scorer, SCORERS[scorer])
