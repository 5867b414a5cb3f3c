"""Goals are solved into the widest aligned FFN that reaches them, then into layers."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from ptl_fast import compress, planned_sizes
from ptl_fast.model import flops
from ptl_fast.run import goals
from support.configs import tiny_config
from support.demo_sizes import demo_parameters
from support.models import DEMO_MODEL
from support.runs import RUN, as_flags, main
from support.settings import settings

CONFIG = AutoConfig.from_pretrained(DEMO_MODEL)


def sizes(multiple: int = 32, original: Any = CONFIG, **values: Any) -> tuple[int, int]:
    """(width, layers) that goals are solved into."""
    config, table = goals.solved(settings(**values), original, multiple)
    assert table is not None
    width = round(config.prune.keep * original.intermediate_size)
    return width, original.num_hidden_layers - config.prune.num_dropped_layers


def test_without_goals_nothing_changes() -> None:
    config = settings(keep=0.3)
    assert goals.solved(config, CONFIG, 32) == (config, None)


@pytest.mark.parametrize("number", [demo_parameters(4, 416), demo_parameters(4, 416) + 1, 900_000])
def test_the_widest_that_reaches_the_number_is_taken(number: int) -> None:
    width, num_layers = sizes(target_params=number)
    assert num_layers == 4
    assert width % 32 == 0
    assert demo_parameters(4, width) <= number < demo_parameters(4, width + 32)


def test_layers_go_where_width_alone_does_not_suffice_and_as_few_as_possible() -> None:
    number = demo_parameters(3, 128)
    assert number < demo_parameters(4, 96), "not even an eighth of the neurons would do"
    assert sizes(target_params=number) == (128, 3)
    _, table = goals.solved(settings(target_params=number), CONFIG, 32)
    assert table is not None
    assert "and --drop-layers 1 (of 4): width alone does not reach it" in table


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    large = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    monkeypatch.setattr(goals.console, "columns", lambda: 80)
    _, table = goals.solved(settings(target_memory="12GiB", target_batch=4), large, 1024)
    assert table is not None
    lines = [line for line in table.split("\n") if line.startswith("|")]
    assert len(lines) == 7
    assert all(len(line) <= 80 for line in lines)


def test_layers_that_are_given_go_and_width_is_solved() -> None:
    assert sizes(target_params=900_000, drop_layers=2) == (768, 2)
    assert sizes(target_params=600_000, drop_layers=1) == (352, 3)
    assert sizes(target_params=600_000, layers="1") == (352, 3)


def test_layers_alone_go_with_keep_1() -> None:
    assert sizes(target_params="60%", keep=1.0) == (768, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_params": 10_000}, r"cannot be reached: 96 of 768 .* 2 of 4 layers, .* come to"),
        ({"target_params": "5B"}, "the model reaches that as it is; ask for less"),
        (
            {"target_params": 10_000, "drop_layers": 1},
            r"cannot be reached: 96 of 768 neurons in 3 of 4",
        ),
        ({"target_memory": "100kB"}, "--target-memory 100kB cannot be reached: .*begin with a sm"),
    ],
)
def test_what_no_size_reaches_is_refused_with_what_does(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        goals.solved(settings(**values), CONFIG, 32)


@pytest.mark.parametrize(
    "values",
    [
        {"target_flops": 0.6},
        {"target_size_on_disk": "3MB"},
        {"target_memory": "12MB"},
        {"target_speedup": 1.3},
        {"target_speedup": 1.3, "target_device": "0.5/40", "target_batch": 64},
        {"target_params": "70%", "target_flops": 0.6, "target_memory": "12MB"},
    ],
)
def test_every_goal_holds_for_the_solution_and_not_for_the_next_wider(values: dict) -> None:
    config = settings(**values)
    problem = goals.Problem(config, CONFIG, 32)
    found = problem.solve()
    assert problem.reaches(found)
    assert not problem.reaches(goals.Solution(width=found.width + 32, num_layers=4))


def test_shares_are_of_flops_at_the_sequence_length() -> None:
    width, _ = sizes(target_flops=0.6, sequence_length=512)
    smaller = flops.resized(CONFIG, width, 4)
    ratio = flops.flops_per_token(smaller, 256) / flops.flops_per_token(CONFIG, 256)
    assert 0.55 < ratio <= 0.6


@pytest.mark.parametrize("model_type", ["mixtral", "gemma3_text", "gpt_neox", "falcon"])
def test_other_types_are_solved_too(model_type: str) -> None:
    original = tiny_config(model_type)
    before = flops.count_weights(original).num_parameters
    config, _ = goals.solved(settings(target_params="80%"), original, 8)
    width = round(config.prune.keep * goals.ffn_width(original))
    after = flops.resized(original, width, 4 - config.prune.drop_layers)
    assert flops.count_weights(after).num_parameters <= 0.8 * before


def test_the_type_of_saved_weights_counts() -> None:
    assert goals.item_bytes(settings(), CONFIG) == 4
    assert goals.item_bytes(settings(save_dtype="bfloat16"), CONFIG) == 2
    assert goals.item_bytes(settings(dtype="float16"), CONFIG) == 2
    assert goals.item_bytes(settings(), tiny_config("llama", dtype="bfloat16")) == 2


def test_the_dry_run_and_planned_sizes_say_what_a_run_reaches(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "target_params": "85%"}
    given = {name: value for name, value in given.items() if name not in ("keep",)}
    flags = as_flags({**given, "output": tmp_path / "run"})
    assert main([*flags, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "Solved from the goals: --keep" in planned
    before, after = planned_sizes(**given)
    assert after["num_parameters"] <= 0.85 * before["num_parameters"]
    assert main(flags) == 0
    assert planned.splitlines()[0] in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert model.num_parameters() == after["num_parameters"]
    state = json.loads((tmp_path / "run" / "state.json").read_text())["config"]
    assert state["keep"] == after["width"] / before["width"]
    # another word for the same size goes on with the same run; another size is another run
    number = {**given, "target_params": after["num_parameters"], "output": tmp_path / "run"}
    assert compress(**number)["final"]["width"] == after["width"]
    with pytest.raises(ValueError, match="holds another run: its --keep is"):
        compress(**{**number, "target_params": "75%"})
