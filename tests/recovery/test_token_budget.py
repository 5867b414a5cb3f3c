"""The ways to spend the recovery budget do what they say, and a killed run that uses them ends
bit-identical.
"""

import copy
import gc
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ptl_fast import compress
from ptl_fast.config.config import Config
from ptl_fast.evaluation import tasks
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.pruning import compact
from ptl_fast.pruning.plan import PruningPlan, plan_layers, plan_neurons
from ptl_fast.pruning.schedule import Round
from ptl_fast.recovery import (
    continual_pretraining,
    learning_rate,
    next_prune_penalty,
    optimizer_state,
    token_budget,
    trainer,
)
from ptl_fast.recovery.task import (
    HeldOutText,
    OptimizerState,
    RecoveryResult,
    TrainingOptions,
)
from ptl_fast.recovery.token_budget import ClosingPhase
from ptl_fast.run import prune_step, stored
from ptl_kernels import hole_filling
from support.models import make_model
from support.recovery import check, config, packed
from support.recovery import train as recover


def train(
    model: PreTrainedModel,
    folder: Path,
    num_steps: int,
    options: TrainingOptions,
    **settings: object,
) -> tuple[RecoveryResult, list[dict]]:
    """Recovery in steps, and what it logged after each."""
    logs: list[dict] = []

    def note(self: object, args: object, state: object, control: object, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            logs.append(dict(kwargs["logs"]))

    tokens = packed()
    num_tokens = round(num_steps * tokens.num_tokens / len(tokens) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_log", note)
        spent = recover(
            model, tokens, num_tokens, config(**settings), folder / "recovery", None, options
        )
    return spent, logs


def rates(logs: list[dict]) -> list[float]:
    return [log["learning_rate"] for log in logs]


def cosine(num_steps: int) -> list[float]:
    """transformers' own schedule at a peak of 1e-2."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(0.05 * num_steps), num_steps)
    values = []
    for _ in range(num_steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def removal(model: PreTrainedModel, number: int = 1, width: int = 32) -> PruningPlan:
    """A plan with random scores."""
    ffns = feed_forwards(model, find_family(model))
    scores = torch.rand(len(ffns), ffns["0"].width, generator=torch.Generator().manual_seed(3))
    step = Round(
        number=number, kind="neurons", width=width, num_layers=len(ffns), recovery_share=1.0
    )
    return plan_neurons(step, scores, None, "random")


def held_out(*values: float, recovered: float = 1.0, num_tokens: int = 1) -> HeldOutText:
    """NLLs that come one after the other."""
    return HeldOutText(nll=partial(next, iter(values)), num_tokens=num_tokens, recovered=recovered)


# --- tokens and steps, by hand


def left(num_tokens: int | None, sizes: list[int], spent: list[int], until: bool) -> list[int]:
    """Of three rounds with shares 1/7, 2/7, 4/7, or equal ones where the data decides."""
    shares = [1 / 7, 2 / 7, 4 / 7] if until and num_tokens else [1 / 3] * 3
    return token_budget.tokens_left(num_tokens, shares, sizes, spent, shared_as_one=until)


def test_what_a_round_saves_goes_to_the_later_ones() -> None:
    until = partial(left, 700, [0, 0, 0], until=True)
    assert until([]) == [100, 200, 400]
    assert until([100]) == [200, 400]
    assert until([40]) == [220, 440], "60 saved, a third and two thirds of them"
    assert until([40, 100]) == [560], "the last round has all that is left"


def test_budget_is_spent_to_the_last_token_or_is_the_data() -> None:
    sizes = [50, 60, 70]
    assert left(100, sizes, [], until=False) == [33, 34, 33]
    assert left(None, sizes, [50], until=False) == [60, 70]
    assert sum(left(None, sizes, [20], until=True)) == 160


def test_checks_read_what_they_can_afford() -> None:
    """Of 8000 tokens in 2 rounds, a check may read 0.3 * 8000 / 16 = 150: at least eight documents,
    if there are so many.
    """
    assert token_budget.num_affordable([10] * 64, 8000, 2) == 15
    assert token_budget.num_affordable([10] * 12, 8000, 2) == 12
    assert token_budget.num_affordable([100] * 64, 8000, 2) == 8
    assert token_budget.num_affordable([100] * 3, 8000, 2) == 3


def test_closing_begins_with_recovery_or_is_the_last_quarter() -> None:
    closing = ClosingPhase(40, 100.0, held_out(num_tokens=60, recovered=1.5))
    assert (closing.begins, closing.ends) == (30, 40)
    assert closing.interval == 2, "60 tokens forward are 20 tokens' training, a tenth of two steps'"
    assert [step for step in range(1, 35) if closing.needs_check(step)] == list(range(2, 30, 2))
    closing.note(2, 2.0)
    assert (closing.begins, closing.ends) == (30, 40)
    closing.note(12, 1.5)
    assert (closing.begins, closing.ends) == (12, 16), "a third of twelve steps follows"
    assert not closing.needs_check(14)
    other = ClosingPhase(40, 100.0, held_out(num_tokens=60))
    other.restore(json.loads(json.dumps(closing.state())))
    assert other.state() == closing.state()


def test_rate_of_a_round_that_may_end_early_is_flat_and_then_falls() -> None:
    closing = ClosingPhase(40, 100.0, held_out())
    rate = learning_rate.learning_rate(TrainingOptions(held_out=closing.held_out), closing)
    assert [rate(step) for step in (0, 1, 2, 20, 30, 35, 39)] == [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.1]
    closing.note(12, 0.0)
    assert [rate(step) for step in (11, 12, 13, 14, 15)] == [1.0, 1.0, 0.75, 0.5, 0.25]


# --- training


def test_each_round_has_a_cosine_of_its_own(llama: PreTrainedModel, tmp_path: Path) -> None:
    _, logs = train(llama, tmp_path / "round-01", 23, TrainingOptions())
    assert rates(logs) == cosine(23)


def test_schedule_of_the_run_goes_on_across_rounds(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Three rounds of 5, 6 and 29 steps: together they are one cosine over 40, with one warm-up."""
    seen = []
    for number, (before, steps, after) in enumerate([(0, 5, 35), (5, 6, 29), (11, 29, 0)]):
        _, logs = train(
            llama,
            tmp_path / f"round-{number}",
            steps,
            TrainingOptions(schedule_position=(before, after)),
        )
        seen += rates(logs)
    assert seen == cosine(40)


def test_round_ends_when_it_has_recovered(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Checked at every second step; recovered at the sixth; then two steps with a falling learning
    rate.
    """
    check = held_out(6.0, 5.0, 2.0, 0.5, num_tokens=60)
    spent, logs = train(llama, tmp_path, 20, TrainingOptions(held_out=check))
    assert spent.checks == [(0, 6.0), (2, 5.0), (4, 2.0), (6, 0.5)]
    assert spent.num_steps == 8
    full = round(20 * packed().num_tokens / len(packed()) * 4)
    assert spent.num_tokens == round(full * 8 / 20)
    assert rates(logs) == pytest.approx([0.0, *[1e-2] * 6, 0.5e-2])


def test_round_that_begins_recovered_does_not_train(llama: PreTrainedModel, tmp_path: Path) -> None:
    before = {name: parameter.clone() for name, parameter in llama.named_parameters()}
    kept: OptimizerState = {"weight": {"exp_avg": torch.ones(1)}}
    check = held_out(0.5, num_tokens=60)
    spent, logs = train(
        llama,
        tmp_path,
        20,
        TrainingOptions(held_out=check, optimizer_state=kept, keep_optimizer_state=True),
    )
    assert logs == []
    assert (spent.num_steps, spent.num_tokens, spent.checks) == (0, 0, [(0, 0.5)])
    assert spent.optimizer_state is kept, "they wait for the next round"
    assert all(torch.equal(before[name], parameter) for name, parameter in llama.named_parameters())


def test_sequences_that_a_round_leaves_go_to_the_next() -> None:
    parts = [packed(seed=seed) for seed in (5, 6, 7)]
    left = continual_pretraining.last_part(parts, [2, 1], 4, 0)

    assert len(left) == sum(map(len, parts)) - 3 * 4, "three steps of four sequences"
    assert torch.equal(left.input_ids[: len(parts[2])], parts[2].input_ids)
    everything = [tuple(row.tolist()) for part in parts for row in part.input_ids]
    rest = [tuple(row.tolist()) for row in left.input_ids]
    assert all(rest.count(row) <= everything.count(row) for row in set(rest))

    assert len(continual_pretraining.last_part(parts[:2], [100], 4, 0)) == len(parts[1]), (
        "nothing is left of a part that was seen whole"
    )


# --- optimizer state


def trained_moments(model: PreTrainedModel, folder: Path) -> OptimizerState:
    spent, _ = train(model, folder, 4, TrainingOptions(keep_optimizer_state=True))
    assert spent.optimizer_state is not None
    return spent.optimizer_state


def test_moments_are_those_of_every_parameter(llama: PreTrainedModel, tmp_path: Path) -> None:
    taken = trained_moments(llama, tmp_path)
    assert taken.keys() == dict(llama.named_parameters()).keys()
    for name, parameter in llama.named_parameters():
        assert set(taken[name]) == {"exp_avg", "exp_avg_sq", "step"}
        assert taken[name]["exp_avg"].shape == parameter.shape
        assert taken[name]["step"] == 4
    again = optimizer_state.from_tensors(optimizer_state.to_tensors(taken))
    assert all(
        torch.equal(value, again[name][key])
        for name, state in taken.items()
        for key, value in state.items()
    )


@pytest.mark.parametrize("family_name", ["llama", "phi3", "qwen2"])
def test_moments_follow_their_neurons_and_layers(family_name: str) -> None:
    """Each moment is marked with its weight: after compaction the marks still fit, in matrices,
    fused ones and biases.
    """
    model = (
        make_model(family_name, mlp_bias=True)
        if family_name == "llama"
        else make_model(family_name)
    )
    family = find_family(model)
    state = {
        name: {
            "exp_avg": 2 * parameter.detach(),
            "exp_avg_sq": parameter.detach() ** 2,
            "step": torch.tensor(3.0),
        }
        for name, parameter in model.named_parameters()
    }
    compact.compact_(model, family, removal(model), state)
    step = Round(number=2, kind="layers", width=32, num_layers=3, recovery_share=1.0)
    compact.compact_(
        model, family, plan_layers(step, torch.tensor([3.0, 1.0, 4.0, 0.0, 2.0]), "x"), state
    )
    assert state.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name]["exp_avg"], 2 * parameter), name
        assert torch.equal(state[name]["exp_avg_sq"], parameter**2), name
        assert state[name]["step"] == 3


def test_kept_state_trains_as_if_neurons_were_only_silenced(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """The second round, small with compacted moments, ends where the wide model with zeroed neurons
    and moments ends.
    """
    family, plan = find_family(llama), removal(llama)
    state = trained_moments(llama, tmp_path / "round-01")
    wide, wide_state = copy.deepcopy(llama), copy.deepcopy(state)
    compact.compact_(llama, family, plan, state)
    assert plan.kept_neurons is not None
    for layer, kept in enumerate(plan.kept_neurons):
        gone = [neuron for neuron in range(48) if neuron not in kept]
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            path = f"model.layers.{layer}.mlp.{name}.weight"
            for tensor in (
                wide.get_parameter(path).detach(),
                wide_state[path]["exp_avg"],
                wide_state[path]["exp_avg_sq"],
            ):
                tensor.index_fill_(dim, torch.tensor(gone), 0.0)
    cold = copy.deepcopy(llama)
    train(llama, tmp_path / "small", 4, TrainingOptions(optimizer_state=state))
    train(wide, tmp_path / "wide", 4, TrainingOptions(optimizer_state=wide_state))
    train(cold, tmp_path / "cold", 4, TrainingOptions())
    compact.compact_(wide, family, plan)
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter, wide.get_parameter(name), atol=1e-4, rtol=1e-3)
    assert (
        max(
            (parameter - cold.get_parameter(name)).abs().max()
            for name, parameter in llama.named_parameters()
        )
        > 3e-3
    )


# --- anticipation


def norms(model: PreTrainedModel, plan: PruningPlan, kept: bool) -> Tensor:
    """L2 norms of the neurons that stay or go, computed layer by layer from the modules."""
    assert plan.kept_neurons is not None
    out = []
    for layer, indices in zip(model.model.layers, plan.kept_neurons, strict=True):
        mlp = layer.mlp
        chosen = (
            indices
            if kept
            else [neuron for neuron in range(mlp.gate_proj.out_features) if neuron not in indices]
        )
        for neuron in chosen:
            parts = (
                mlp.gate_proj.weight[neuron],
                mlp.up_proj.weight[neuron],
                mlp.down_proj.weight[:, neuron],
            )
            out.append(torch.cat(parts).norm())
    return torch.stack(out).detach()


@pytest.mark.parametrize("family_name", ["llama", "phi3"])
def test_penalty_is_the_sum_of_norms_of_what_will_go(family_name: str) -> None:
    model = make_model(family_name)
    plan = removal(model)
    compute = next_prune_penalty.penalty(model, find_family(model), plan.kept_neurons, 0.25)
    assert compute is not None
    value = compute()
    if (
        family_name == "phi3"
    ):  # its gate and up lie in one matrix; split them for the plain computation
        for layer in model.model.layers:
            layer.mlp.gate_proj, layer.mlp.up_proj = (
                torch.nn.Linear(32, 48),
                torch.nn.Linear(32, 48),
            )
            gate, up = layer.mlp.gate_up_proj.weight.detach().chunk(2)
            layer.mlp.gate_proj.weight.data, layer.mlp.up_proj.weight.data = gate, up
    assert value.item() == pytest.approx(
        0.25 * norms(model, plan, kept=False).sum().item(), rel=1e-5
    )


def test_neuron_of_zero_weights_has_no_nan_gradient(llama: PreTrainedModel) -> None:
    for parameter in llama.parameters():
        parameter.detach().zero_()
    compute = next_prune_penalty.penalty(
        llama, find_family(llama), removal(llama).kept_neurons, 1.0
    )
    assert compute is not None
    compute().backward()
    assert all(torch.isfinite(p.grad).all() for p in llama.parameters() if p.grad is not None)


def test_anticipated_neurons_shrink_and_the_others_do_not(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """Against the same training without the penalty, which begins with the last quarter and is in
    the log from then on.
    """
    plan, plain = removal(llama), copy.deepcopy(llama)
    begins: list[bool] = []

    def begin() -> Callable[[], Tensor] | None:
        begins.append(True)
        return next_prune_penalty.penalty(llama, find_family(llama), plan.kept_neurons, 0.1)

    _, logs = train(
        llama, tmp_path / "a", 16, TrainingOptions(make_penalty=begin, schedule_position=(40, 60))
    )
    _, plain_logs = train(plain, tmp_path / "b", 16, TrainingOptions(schedule_position=(40, 60)))
    assert begins == [True]
    assert ["penalty" in log for log in logs] == [False] * 12 + [True] * 4
    assert not any("penalty" in log for log in plain_logs)
    # the micro-batches of a step add the penalty once, not once each: at the first such step the
    # weights are still the same
    assert logs[12]["loss"] - logs[12]["penalty"] == pytest.approx(plain_logs[12]["loss"], rel=1e-3)
    assert (norms(llama, plan, kept=False) < norms(plain, plan, kept=False)).double().mean() > 0.95
    assert norms(llama, plan, kept=True).mean().item() == pytest.approx(
        norms(plain, plan, kept=True).mean().item(), rel=0.02
    )


# --- whole runs


RUN = {
    "device": "cpu",
    "keep": 0.5,
    "rounds": 3,
    "width_multiple": 8,
    "sequence_length": 64,
    "global_batch": 4,
    "micro_batch": 2,
    "recovery_tokens": 12000,
    "recovery_split": "equal",
    "learning_rate": 1e-3,
    "calibration_tokens": 1000,
    "checkpoint_minutes": 0.0,
    "gradient_checkpointing": False,
}
# The random model begins at 6.2 nats: round 1 reaches 5.7 at its first check, and none reaches 5.0
# before round 2's.
UNTIL = {"recovery_split": "until-recovered", "recovery_growth": 1.0, "recovered_within": -0.5}
LATER = {**UNTIL, "recovered_within": -1.2}


def plans(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("round-*/plan.json"))]


def test_first_scores_decide_every_round(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """Followed by hand through three rounds of neurons and one of layers: always the best of the
    first round's order stay.
    """
    settings = {
        **RUN,
        "drop_layers": 1,
        "order": "alternate",
        "recovery": "none",
        "score_once": True,
    }
    compress(**tiny_run, **settings, output=tmp_path)
    first = load_file(tmp_path / "round-01" / "statistics.safetensors")["scores"]
    dropped: list[int] = []
    originals = [list(range(48)) for _ in range(5)]
    for plan in plans(tmp_path):
        if plan["kind"] == "layers":
            dropped = plan["dropped_layers"]
            originals = [names for layer, names in enumerate(originals) if layer not in dropped]
            continue
        order = hole_filling(
            torch.tensor(plan["kept_neurons"]), len(originals[0])
        ).order_LK.tolist()
        originals = [
            [names[place] for place in places]
            for names, places in zip(originals, order, strict=True)
        ]
        scores = [
            row for layer, row in enumerate(first) if not (len(originals) == 4 and layer in dropped)
        ]
        for names, row in zip(originals, scores, strict=True):
            assert sorted(names) == sorted(row.argsort(descending=True)[: plan["width"]].tolist())
    assert [plan["kind"] for plan in plans(tmp_path)] == ["neurons", "layers", "neurons", "neurons"]
    assert dropped
    # the round's own file has the scores of what was left then, so that a decision can be looked up
    # as in any other run
    last = load_file(tmp_path / "round-04" / "statistics.safetensors")["scores"]
    assert last.shape == (4, 32)


def test_first_scores_of_protected_text_are_kept_too(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        **RUN,
        "recovery": "none",
        "score_once": True,
        "protect": tiny_run["data"],
        "protect_share": 0.4,
        "rounds": 2,
    }
    settings["scorer"] = "activation"
    compress(**tiny_run, **settings, output=tmp_path)
    first = load_file(tmp_path / "round-01" / "statistics.safetensors")["protect_scores"]
    (one, two) = plans(tmp_path)
    later = load_file(tmp_path / "round-02" / "statistics.safetensors")["protect_scores"]
    order = hole_filling(torch.tensor(one["kept_neurons"]), 48).order_LK
    assert torch.equal(later, first.gather(1, order))
    for row, kept in zip(later, two["kept_neurons"], strict=True):
        assert set(row.topk(int(0.4 * len(row))).indices.tolist()) <= set(kept)


def test_every_round_scores_on_the_calibration_tokens_however_small_its_part(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        **RUN,
        "recovery": "none",
        "recovery_split": "growing",
        "recovery_growth": 8.0,
        "calibration_tokens": 3000,
    }
    compress(**tiny_run, **settings, output=tmp_path)
    for number in (1, 2, 3):
        counted = int(
            load_file(tmp_path / f"round-{number:02d}" / "statistics.safetensors")["num_tokens"]
        )
        assert 3000 <= counted < 3000 + 2 * 64, "as few sequences as hold them"


def test_recovered_rounds_hand_their_tokens_on(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """The first ends early; the second begins recovered and does not train; the last takes what is
    left.
    """
    report = compress(**tiny_run, **{**RUN, **UNTIL}, output=tmp_path)
    tokens, steps = (
        [record[name] for record in report["rounds"]]
        for name in ("recovery_tokens", "recovery_steps")
    )
    (before, check), (second_check,), last_checks = [
        record["checks"] for record in report["rounds"]
    ]
    limit = json.loads((tmp_path / "dense.json").read_text())["checked_nll"] - 0.5
    assert (before[0], second_check[0]) == (0, 0)
    assert check[1] <= limit < before[1]
    assert second_check[1] <= limit
    assert steps[0] == check[0] + round(check[0] / 3), "recovered at the first check, and closed"
    assert 0 < tokens[0] < 4000
    assert (steps[1], tokens[1]) == (0, 0)
    assert sum(tokens) == 12000, "the last round takes what is left"
    assert last_checks == []
    assert steps[2] > 2 * steps[0]


def test_unrecovered_rounds_take_their_share(tiny_run: dict[str, str], tmp_path: Path) -> None:
    report = compress(**tiny_run, **{**RUN, **UNTIL, "recovered_within": -100.0}, output=tmp_path)
    assert [record["recovery_tokens"] for record in report["rounds"]] == [4000, 4000, 4000]
    assert all(nll > -50 for record in report["rounds"] for _, nll in record["checks"])
    for record in report["rounds"][:2]:
        interval = record["checks"][1][0]
        steps = range(0, round(0.75 * record["recovery_steps"]), interval)
        assert [step for step, _ in record["checks"]] == list(steps), "until the closing begins"
    assert report["rounds"][2]["checks"] == []


def test_anticipated_neurons_are_exactly_those_removed(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """The next round's plan is on disk before the round ends, and is not decided again."""
    seen: dict[str, tuple[bool, list]] = {}
    penalty = prune_step.next_penalty

    def note(context: Any, following: Round) -> Any:
        own, before = (context.folder.round(following.number - back) for back in (0, 1))
        made = penalty(context, following)
        seen[str(following.number)] = (before.record.exists(), own.plan.read()["kept_neurons"])
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_step, "next_penalty", note)
        compress(**tiny_run, **{**RUN, "anticipate": 1e-3}, output=tmp_path)
    assert seen == {
        str(plan["round"]): (False, plan["kept_neurons"]) for plan in plans(tmp_path)[1:]
    }


def test_round_that_does_not_train_passes_tokens_and_state_on(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """The first round goes as low as --keep allows, so the second finds nothing to remove; the
    third drops a layer.
    """
    settings = {
        **RUN,
        "threshold": 1e9,
        "rounds": 2,
        "drop_layers": 1,
        "keep_optimizer_state": True,
        "anticipate": 1e-3,
    }
    starts: list[bool] = []
    give = optimizer_state.give
    measured, measure = list[str](), tasks.answer_nll
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_state, "give", lambda *args: (starts.append(True), give(*args)))
        patch.setattr(
            tasks, "answer_nll", lambda *args: (measured.append(args[-1]), measure(*args))[1]
        )
        report = compress(**tiny_run, **settings, output=tmp_path)
    assert [record["recovery_tokens"] for record in report["rounds"]] == [4000, 0, 8000]
    assert starts == [True], "the third round began warm"
    rounds = [label.removesuffix(": nll") for label in measured if label.startswith("round")]
    again = [f"round {number} {when}" for number in (1, 2, 3) for when in ("pruned", "recovered")]
    assert rounds == [label for label in again if label != "round 2 recovered"], (
        "nothing has changed in between"
    )
    assert report["rounds"][1]["eval"] == report["rounds"][1]["eval_pruned"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"keep_optimizer_state": True, "deepspeed": "zero2"},
            "not supported with --deepspeed yet",
            id="deepspeed",
        ),
        pytest.param({"anticipate": -1.0}, "--anticipate -1.0 also at least 0", id="negative"),
        pytest.param(
            {"recovered_within": float("nan")}, "--recovered-within nan must be finite", id="nan"
        ),
        pytest.param(
            {"anticipate": 0.1, "recovery": "none"},
            "--anticipate is about training",
            id="no-training",
        ),
        pytest.param(
            {"lr_schedule": "run", "recovery": "none"},
            "--lr-schedule run is about training",
            id="no-schedule",
        ),
        pytest.param(
            {"score_once": True, "score_during_recovery": True},
            "leave it out",
            id="two-ways-to-score",
        ),
        pytest.param(
            {"anticipate": 0.1, "score_during_recovery": True}, "leave it out", id="too-late"
        ),
        pytest.param(
            {"lr_schedule": "week"}, "unknown --lr-schedule week; choose round, run", id="unknown"
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(Config.from_flat(model="x", data="x", **values))


# --- interrupted runs


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have the next run die before it writes a file, or before a round's step begins: 'round-01
    step 7'.
    """
    write, begin = stored.write_atomically, trainer.StopAtNan.on_step_begin
    where = [""]

    def dying_write(file: Path, content: bytes) -> None:
        if where[0] and file.as_posix().endswith(where[0]):
            raise Killed
        write(file, content)

    def dying_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if where[0] == f"{Path(args.output_dir).parent.name} step {state.global_step}":
            raise Killed
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(stored, "write_atomically", dying_write)
    monkeypatch.setattr(trainer.StopAtNan, "on_step_begin", dying_step)

    def choose(place: str) -> None:
        where[0] = place

    return choose


EVERYTHING = {**LATER, "keep_optimizer_state": True, "anticipate": 1e-3}
ONE_SCHEDULE = {**LATER, "lr_schedule": "run", "score_once": True, "anticipate": 1e-3}


@pytest.mark.parametrize(
    ("options", "places"),
    [
        pytest.param(
            EVERYTHING,
            "round-01 step 3,round-02/plan.json,round-01/optimizer.safetensors,round-01/record.json,round-02/pruned.json,"
            "round-02 step 8,round-02/recovery.json,round-03 step 2",
            id="until-recovered-state-anticipate",
        ),
        pytest.param(ONE_SCHEDULE, "round-01 step 8,round-02 step 4", id="run-schedule-score-once"),
    ],
)
def test_killed_run_ends_bit_identical(
    options: dict,
    places: str,
    tiny_run: dict[str, str],
    kill: Callable[[str], None],
    tmp_path: Path,
) -> None:
    undisturbed = compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "a")
    for place in places.split(","):
        kill(place)
        with pytest.raises(Killed):
            compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "b")
        gc.collect()  # lets go of the folder, as a process that ends does
    kill("")
    report = compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "b")
    assert (tmp_path / "a/final/model.safetensors").read_bytes() == (
        tmp_path / "b/final/model.safetensors"
    ).read_bytes()
    assert plans(tmp_path / "a") == plans(tmp_path / "b")
    for record in (*undisturbed["rounds"], *report["rounds"]):
        del record["seconds"]
    assert undisturbed["rounds"] == report["rounds"]
    assert not list((tmp_path / "b").rglob("optimizer.safetensors")), "no round needs it any more"
