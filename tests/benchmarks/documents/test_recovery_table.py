"""The tables of docs/recovery.md are what the rows give."""

from benchmarks.documents import recovery_table


def test_table_has_mean_and_range_over_seeds_and_says_what_is_missing() -> None:
    rows = {
        str(seed): {
            "untouched": {"accuracy": 60.0 + seed, "tokens": 0, "cpu_seconds": 0.0},
            "grpo": {**reinforced, "cpu_seconds": 50},
        }
        for seed, reinforced in enumerate(
            [{"accuracy": 70.0, "tokens": 0, "grpo": {"rollouts": 5120}}] * 3
        )
    }
    table = recovery_table.arms_table({"rows": rows}, recovery_table.ARMS)
    assert table[1] == ["the pruned model, untouched", "61.0 (60.0 to 62.0)", "3", "0", "0", "0"]
    assert table[2] == ["`grpo`", "70.0 (70.0 to 70.0)", "3", "50", "0", "5,120"]
    assert table[3][1:] == ["not measured"] * 5


def test_committed_document_is_what_the_rows_give() -> None:
    assert "<!-- table:reinforcement -->" in recovery_table.DOCUMENT.read_text()
    recovery_table.main(["--check"])
