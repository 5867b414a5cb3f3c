"""docs/experts.md is what the rows of the study give."""

from benchmarks.documents import experts_table


def test_a_row_has_the_accuracies_of_its_rounds() -> None:
    row = {
        "name": "both",
        "num_experts": 4,
        "width": 96,
        "parameters": 0.3187,
        "flops_per_token": 0.6909,
        "dense": 0.995,
        "pruned": [0.5, 0.25],
        "recovered": [0.9, 0.805],
    }
    _, before, both = experts_table.experts_table([{"rows": [row]}])
    assert before[-1] == "99.5"
    assert both == ["both", "4", "96", "31.9%", "69.1%", "50.0, 25.0", "90.0, 80.5"]


def test_committed_document_is_what_the_rows_give() -> None:
    experts_table.main(["--check"])
