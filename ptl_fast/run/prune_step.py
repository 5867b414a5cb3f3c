"""One half of a round: what goes, by the scores of what is there, and the smaller model. It joins
the stages that this takes.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from ptl_fast.run.context import next_statistics, optimizer_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import State
    from ptl_fast.scoring.gram import GramMatrices
    from ptl_fast.scoring.statistics import Extra, Statistics


def plan_round(state: "State", step: "Round") -> dict[str, Any]:
    """Decide what goes; the numbers behind the decision go to the round's folder."""
    from ptl_fast.pruning import plan

    if step.kind != "neurons":  # with --threshold, the rounds before decided on the width
        step = dataclasses.replace(step, width=state.model.config.intermediate_size)
    if step.kind in ("none", "hidden", "final"):
        return dataclasses.asdict(plan.plan_nothing(step))
    first = next(each.number for each in state.schedule if each.kind == step.kind)
    tensors = (
        _first_scores(state, first, step.number)
        if state.config.score_once and first < step.number
        else _scores(state, step)
    )
    if step.kind == "layers":
        decided = plan.plan_layers(step, tensors["scores"], state.config.layer_scorer)
    else:
        decided = _plan_neurons(state, step, tensors)
    state.folder.write_tensors(f"round-{step.number:02d}/statistics.safetensors", tensors)
    return dataclasses.asdict(decided)


def _scores(state: "State", step: "Round") -> "dict[str, Tensor]":
    """The statistics of the round's own data, and the scores of neurons or layers.

    Also, unless the scores look at --protect's text themselves, as reconstruction does, those of
    neurons on that text."""
    from ptl_fast.scoring import scorers
    from ptl_fast.scoring import statistics as statistics_module

    statistics = _statistics(state, step)
    if step.kind == "layers":
        return {
            **statistics.tensors(),
            "scores": scorers.LAYER_SCORERS[state.config.layer_scorer](statistics),
        }
    seed, scorer = state.config.seed * 1000 + step.number, scorers.SCORERS[state.config.scorer]
    scores = {"scores": scorer(statistics, state.model, state.family, seed)}
    protected = state.inputs.protected
    if (
        protected is not None
        and protected.tokens is not None
        and state.config.scorer != "reconstruction"
    ):
        extras, batch_size = extra(state, step.kind), state.config.micro_batch
        general = statistics_module.collect(
            state.model, state.family, protected.tokens, batch_size, "protect", extras
        )
        scores["protect_scores"] = scorer(general, state.model, state.family, seed)
    return {**statistics.tensors(), **scores}


def _first_scores(state: "State", first: int, number: int) -> "dict[str, Tensor]":
    """The scores of round ``first``, of what is left when round ``number`` begins, in today's
    order.
    """
    from ptl_fast.pruning import compact
    from ptl_fast.pruning.plan import PruningPlan

    tensors = state.folder.read_tensors(f"round-{first:02d}/statistics.safetensors")
    plans = [
        PruningPlan(**state.folder.read_json(f"round-{each:02d}/plan.json"))
        for each in range(first, number)
    ]
    scores: dict[str, Tensor] = {
        name: tensors[name]
        for name in ("scores", "protect_scores", "selected_LI")
        if name in tensors
    }
    for plan in plans:
        scores = {name: compact.follow(each, plan) for name, each in scores.items()}
    return {"num_tokens": tensors["num_tokens"], **scores}


def _plan_neurons(state: "State", step: "Round", tensors: "dict[str, Tensor]") -> "PruningPlan":
    """What goes, by the round's scores, without what --protect's text needs."""
    from ptl_fast.pruning import plan
    from ptl_fast.scoring import scorers

    name, scores, protected = state.config.scorer, tensors["scores"], None
    if "protect_scores" in tensors:
        protected = plan.protect(tensors["protect_scores"], state.config.protect_share)
    if state.config.threshold is None:
        return plan.plan_neurons(step, scores, protected, name, tensors.get("selected_LI"))
    assert isinstance(state.config.width_multiple, int)
    redundant = scorers.per_token(name, scores, tensors["num_tokens"]) <= state.config.threshold
    return plan.plan_redundant(
        step, scores, protected, name, redundant, state.config.width_multiple
    )


def _statistics(state: "State", step: "Round") -> "Statistics":
    """What the last round's recovery took for this one, or else those of a pass over the first of
    the round's data.
    """
    from ptl_fast.base import distributed
    from ptl_fast.baselines import authors_rule
    from ptl_fast.scoring import statistics as statistics_module

    config, taken = state.config, next_statistics(step.number - 1)
    if config.score_during_recovery and distributed.agree((state.output / taken).is_file()):
        return statistics_module.Statistics(**state.folder.read_tensors(taken))
    statistics, state.grams = _collect(
        state, step.kind, _calibration(state, step.number), "calibrate"
    )
    if step.kind == "neurons" and config.scorer == "reference":
        reasoning = [
            ids[: config.sequence_length] for ids in state.course.corpus.subsets[step.number - 1]
        ]
        assert state.inputs.protected is not None
        statistics.selected_LI = authors_rule.detect(
            state.model, state.family, reasoning, state.inputs.protected.samples
        )
    return statistics


def _calibration(state: "State", number: int) -> "PackedTokens":
    """The first of a round's own data, and where that is short, of the rounds' that follow, and
    then of those before.
    """
    tokens, *others = [*state.training[number - 1 :], *state.training[: number - 1]]
    for part in others:
        if tokens.num_tokens < state.config.calibration_tokens:
            tokens = tokens.followed_by(part)
    return tokens.first(state.config.calibration_tokens)


def _collect(
    state: "State", kind: str, tokens: "PackedTokens", description: str
) -> "tuple[Statistics, GramMatrices | None]":
    """What scoring and compensating a round of this kind need to know of these tokens, by one pass
    where memory allows.
    """
    from ptl_fast.scoring import gram, reconstruction
    from ptl_fast.scoring import statistics as statistics_module

    batch_size, grams, by_price = (
        state.config.micro_batch,
        None,
        state.config.scorer == "reconstruction",
    )
    if kind == "neurons" and (by_price or state.config.compensate):
        protected = state.inputs.protected.tokens if state.inputs.protected is not None else None
        share = state.config.protect_share
        grams = gram.GramMatrices(state.model, state.family, tokens, batch_size, protected, share)
    statistics = statistics_module.collect(
        state.model, state.family, tokens, batch_size, description, extra(state, kind), grams
    )
    if grams is not None and by_price:
        statistics.price_LI = reconstruction.prices(grams)
    return statistics, grams


def extra(state: "State", kind: str) -> "frozenset[Extra]":
    """What a round of this kind needs beyond the usual statistics, or what the user wants to have."""
    from ptl_fast.scoring import scorers

    everything: frozenset[Extra] = (
        frozenset({"sums"}) if state.config.all_statistics else frozenset()
    )
    return everything | scorers.EXTRA.get(
        state.config.layer_scorer if kind == "layers" else state.config.scorer, frozenset()
    )


def compact_round(state: "State", plan: "PruningPlan") -> None:
    """Make the model smaller as the plan says, and with --keep-optimizer-state the moments that the
    round before left.
    """
    from ptl_fast.base import distributed
    from ptl_fast.baselines import slicegpt
    from ptl_fast.pruning import compact, compensate
    from ptl_fast.recovery import optimizer_state

    state.moments = None
    if plan.kind == "final":
        return
    tokens = _calibration(state, plan.round)
    if plan.hidden_size is not None:
        state.model, eigenvalues = slicegpt.rotate_and_slice(
            state.model, tokens, plan.hidden_size, state.config.micro_batch
        )
        state.folder.write_tensors(
            f"round-{plan.round:02d}/statistics.safetensors", {"eigenvalues": eigenvalues}
        )
        return
    kept = optimizer_file(plan.round - 1)
    if distributed.agree((state.output / kept).is_file()):  # not before a round has trained
        state.moments = optimizer_state.from_tensors(state.folder.read_tensors(kept))
    if state.config.compensate and plan.kept_neurons is not None:
        if (
            state.grams is None
        ):  # scored in another process, another round, or the middle of a recovery
            _, state.grams = _collect(state, plan.kind, tokens, "compensate")
        assert state.grams is not None
        compensate.compensate_(state.grams, plan.kept_neurons)
    state.grams = None
    compact.compact_(state.model, state.family, plan, state.moments)


def anticipate_round(state: "State", following: "Round") -> "Callable[[], Tensor] | None":
    """Decide now what the next round will remove, and return the penalty on it."""
    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.recovery import next_prune_penalty

    plan = PruningPlan(
        **state.folder.once(
            f"round-{following.number:02d}/plan.json", lambda: plan_round(state, following)
        )
    )
    state.grams = None  # of a model that goes on changing
    return next_prune_penalty.penalty(state.model, state.family, plan, state.config.anticipate)
