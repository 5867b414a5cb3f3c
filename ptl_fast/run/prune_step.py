"""The first half of a round: score the model's neurons or layers, plan what goes, and remove it.

How a kind of round plans and prunes is in ptl_fast.pruning.round_kinds; this module gives it the
scores and what else it takes, from the run's context.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.console import say
from ptl_fast.baselines import SCORERS
from ptl_fast.model.families import down_projections
from ptl_fast.model.widths import ffn_width, tokens_per_ffn
from ptl_fast.pruning import compact, compensate
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.pruning.round_kinds import PruningWork, Scores, neuron_scores
from ptl_fast.recovery import next_prune_penalty, optimizer_state
from ptl_fast.run import expert_choice, fitted_columns, layer_choice, layer_folds, report
from ptl_fast.run.folder import read_plan
from ptl_fast.run.rounds import kind_of
from ptl_fast.scoring import ridge, token_weights
from ptl_fast.scoring import statistics as statistics_module
from ptl_fast.scoring.evidence import Evidence, Samples
from ptl_fast.scoring.scorers import LAYER_SCORERS
from ptl_fast.scoring.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.context import RunContext
    from ptl_fast.scoring.gram import GramMatrices
    from ptl_fast.scoring.statistics import Extra

# statistics.safetensors: with --token-weights, each calibration token's divergence
DIVERGENCE = "divergence_ST"


def check_weights(context: "RunContext") -> None:
    """Run one sequence through the model in memory.

    Weights that overflow or are damaged show here, not after hours of training.

    Raises:
        ValueError: an activation is NaN or infinite.
    """
    now, tokens = context.now, context.data.one_sequence()
    statistics_module.collect(now.model, now.family, tokens, 1, "check")


def tokens_refitted_to(context: "RunContext") -> dict[int, int]:
    """{unfinished round: tokens that least squares fits an FFN to}; {} where none does."""
    config, left = context.config, context.rounds.schedule[len(context.records) :]
    refits = config.prune.compensate or SCORERS[config.score.scorer].reads_grams
    numbers = [each.number for each in left if refits and kind_of(each).size == "width"]
    counted = context.data.counted(numbers, config.score.calibration_tokens)
    return {number: tokens_per_ffn(context.original, each) for number, each in counted.items()}


def plan_round(context: "RunContext", step: "Round") -> dict[str, Any]:
    """Decide what the round removes; returns the PruningPlan as a dict, for plan.json.

    The statistics and scores behind it are written to statistics.safetensors. A run killed before
    the caller has written plan.json decides again and overwrites them.
    """
    kind, scores = kind_of(step), Calibration(context, step).scores()
    # with --threshold, the width that such a round leaves as it is may not be the schedule's
    if kind.size != "width":
        step = dataclasses.replace(step, width=ffn_width(context.model.config))
    plan = kind.plan(step, scores)
    weighs = context.config.score.weighs_tokens and plan.kept_neurons is not None
    if weighs and scores is not None:
        scores = _weighted_scores(context, step, plan, scores)
        plan = kind.plan(step, scores)
    # a round that only trains has no scores
    if scores is not None:
        context.folder.round(step.number).statistics.write(scores.kept)
    return dataclasses.asdict(plan)


def _weighted_scores(
    context: "RunContext", step: "Round", first: PruningPlan, scores: Scores
) -> Scores:
    """The round's scores by weighted tokens. The weights follow from a probe, the model that the
    first plan, by unweighted scores, would leave; a scorer that knows no weights keeps its scores.
    """
    divergence = Calibration(context, step).divergence(first)
    # those of unweighted tokens, as large as those to come
    context.now.grams = None
    weighted = Calibration(context, step, divergence)
    summary = token_weights.summary(weighted.tokens(), divergence)
    context.folder.round(step.number).token_weights.write(summary)
    say(report.token_weights_line(step.number, summary))
    if SCORERS[context.config.score.scorer].weighs_tokens:
        found = weighted.scores()
        assert found is not None
        scores = found
    return dataclasses.replace(scores, kept={**scores.kept, DIVERGENCE: divergence})


def _stored_divergence(context: "RunContext", step: "Round") -> "Tensor | None":
    """Each calibration token's divergence, as the round was planned with; None: no weights."""
    stored = context.folder.round(step.number).statistics
    # a round that only trains has no statistics
    if not context.config.score.weighs_tokens or not stored.given():
        return None
    return stored.read().get(DIVERGENCE)


def prune(context: "RunContext", step: "Round", *, weights_follow: bool = False) -> None:
    """Make the model in memory smaller as the round's plan.json says.

    With --keep-optimizer-state, the optimizer state that the round before left is loaded and cut to
    the same shapes.

    Args:
        weights_follow: whether a checkpoint of the round's recovery is loaded next. Then only the
            shapes matter, and compensation by least squares is skipped.
    """
    now, kind, files = context.now, kind_of(step), context.folder.round(step.number)
    now.optimizer_state = None
    # --final-recovery prunes nothing and starts from a fresh optimizer
    if kind.is_final:
        return
    before = context.folder.round(step.number - 1).optimizer_state()
    # missing in the first round, and where earlier rounds had nothing to train
    if before.given():
        now.optimizer_state = optimizer_state.from_tensors(before.read())
    calibration = Calibration(context, step, _stored_divergence(context, step))
    plan = read_plan(files)
    compensates = calibration.compensates and plan.kept_neurons is not None and not weights_follow
    # weights that follow have them
    dropped = [] if weights_follow else plan.dropped_layers
    folds = layer_folds.folds(context, dropped, calibration.tokens()) if dropped else []
    grams = calibration.grams() if compensates and not calibration.in_order else None
    work = PruningWork(
        model=now.model,
        family=now.family,
        optimizer_state=now.optimizer_state,
        grams=grams,
        gram_means=None if grams is None else grams.means,
        columns=fitted_columns.columns(context, plan, step.number, calibration.tokens())
        if compensates and calibration.in_order
        else None,
        folds=folds,
        tokens=calibration.tokens(),
        batch_size=calibration.batch_size,
    )
    if plan.down_bias:
        _add_bias_(calibration, plan)
    now.model, kept = kind.apply(plan, work)
    # the Gram matrices belong to the unpruned weights, and are large
    now.grams = None
    if kept:
        files.statistics.write(kept)
    if folds:
        folded = distributed.agree([fold.to_json() for fold in folds])
        files.folded_layers.write(folded)
        say("\n".join(report.folded_lines(step.number, folded)))


def _add_bias_(calibration: "Calibration", plan: PruningPlan) -> None:
    """Let a bias stand for what the neurons that the plan removes have given on average."""
    means_LI = calibration.means() if plan.kept_neurons is not None else None
    add_bias_ = SCORERS[calibration.context.config.score.scorer].add_bias_
    assert add_bias_ is not None
    add_bias_(calibration.model, calibration.family, means_LI, plan.kept_neurons)


def next_penalty(context: "RunContext", following: "Round") -> "Callable[[], Tensor] | None":
    """Plan the next round during this one's recovery; return --anticipate's penalty on what it
    will remove, a function that computes the term added to the loss (None: no penalty).

    The plan is written to the next round's folder, and that round follows it.
    """
    # on resume the plan is read: the model has changed since, and would give another one
    files = context.folder.round(following.number)
    files.plan.once(lambda: plan_round(context, following))
    plan = read_plan(files)
    now = context.now
    now.grams = None  # this model goes on training, so they would be outdated when it is pruned
    weight = context.config.recovery.anticipate
    return next_prune_penalty.penalty(now.model, now.family, plan.kept_neurons, weight)


def needed_statistics(context: "RunContext", step: "Round") -> "frozenset[Extra]":
    """The optional statistics to collect: those that the round's scorer needs, and with
    --all-statistics the sums.

    Squared activations and the change of the residual stream per layer are always collected.
    """
    score = context.config.score
    wanted: frozenset[Extra] = frozenset({"sums"} if score.all_statistics else ())
    # keyed by what the round makes smaller; a round that only trains needs no scores
    needs: dict[str | None, frozenset[Extra]] = {
        "width": SCORERS[score.scorer].needs,
        "num_layers": LAYER_SCORERS[score.layer_scorer].needs,
    }
    return wanted | needs.get(kind_of(step).size, frozenset())


class Calibration:
    """Scores and Gram matrices of the model in memory, on a round's calibration tokens.

    Computed when they are asked for, so a round that needs none makes no calibration pass.

    Args:
        divergence: by which the tokens are weighted; None: all count alike.
    """

    def __init__(
        self, context: "RunContext", step: "Round", divergence: "Tensor | None" = None
    ) -> None:
        config = context.config
        self.context, self.step, self.model = context, step, context.now.model
        self.family, self.batch_size = context.now.family, config.trainer.micro_batch
        self.compensates, self.in_order = config.prune.compensate, config.prune.fits_in_order
        self.reads_grams = SCORERS[config.score.scorer].reads_grams or (
            self.compensates and not self.in_order
        )
        self._divergence = divergence

    def tokens(self) -> "PackedTokens":
        """The first --calibration-tokens of the round's part of the data."""
        score = self.context.config.score
        tokens = self.context.data.calibration(self.step.number, score.calibration_tokens)
        if self._divergence is None:
            return tokens
        return token_weights.weighted(tokens, self._divergence)

    def scores(self) -> Scores | None:
        """The scores of what the round makes smaller; None if it makes neither smaller."""
        size = kind_of(self.step).size
        find = {
            "width": self._neuron_scores,
            "num_layers": self._layer_scores,
            "num_experts": self._expert_scores,
        }
        return find[size]() if size is not None else None

    def grams(self) -> "GramMatrices":
        """Each layer's Gram matrix on the calibration tokens, (width, width)."""
        now = self.context.now
        # missing if a resumed run read the plan from disk, or if no calibration pass was made: the
        # scores came from an earlier round or from the statistics of a recovery
        if now.grams is None:
            _, now.grams = self._collect(self.tokens(), "compensate")
        assert now.grams is not None
        return now.grams

    def divergence(self, plan: PruningPlan) -> "Tensor":
        """How far the model that the plan would leave predicts from the present one, at each of the
        calibration tokens: (num_sequences, length), in nats.
        """
        assert plan.kept_neurons is not None
        downs = down_projections(self.model, self.family)
        grams = self.grams() if self.compensates and self.reads_grams else None
        probe = compensate.pruned_projections(downs, grams, plan.kept_neurons)
        biases = compensate.pruned_biases(downs, probe, {} if grams is None else grams.means)
        return token_weights.divergence(
            self.model, self.tokens(), self.batch_size, downs, probe, biases=biases
        )

    def means(self) -> "Tensor":
        """Each neuron's mean activation on the calibration tokens, (num_layers, width) fp64."""
        # what the round's scores rest on, also in a resumed run; --score-once has only its scores
        taken = self.context.folder.round(self.step.number).statistics.read()
        if "sum_LI" not in taken:
            found, _ = self._collect(self.tokens(), "mean activations")
            taken = found.tensors()
        return taken["sum_LI"] / taken["num_tokens"]

    def _neuron_scores(self) -> Scores:
        """The neurons' scores, and which neurons are protected or redundant."""
        kept = self._kept_once() or self._measured_neurons()
        config = self.context.config
        return neuron_scores(kept, SCORERS[config.score.scorer], config.score, config.prune)

    def _layer_scores(self) -> Scores:
        """The layers' scores; with the statistics behind them, for the round's folder."""
        context = self.context
        if context.config.prune.named_layers:
            values = layer_choice.as_named(context, self.step)
            return Scores(scorer=layer_choice.NAMED, values=values, kept={"scores": values})
        name = context.config.score.layer_scorer
        kept = self._kept_once()
        if kept is None:
            taken = self._statistics()
            kept = {**taken.tensors(), "scores": LAYER_SCORERS[name].compute(taken)}
        limits = layer_choice.limits(context, self.step, kept["scores"])
        return Scores(scorer=name, values=kept["scores"], kept=kept, limits=limits)

    def _expert_scores(self) -> Scores:
        """The experts' scores, with the statistics behind them."""
        return expert_choice.scores(self.context, self.step, self._statistics())

    def _measured_neurons(self) -> "dict[str, Tensor]":
        """The round's statistics and its scores, (num_layers, width), by their names in the file.

        With --protect there are also "protect_scores" on that text, by which neurons are protected,
        unless the scorer takes that text into account itself.
        """
        config, protected = self.context.config, self.context.inputs.protected
        scorer, taken = SCORERS[config.score.scorer], self._statistics()
        scores = {"scores": scorer.compute(self._evidence(taken))}
        if protected is not None and protected.tokens is not None and not scorer.reads_protected:
            extra = needed_statistics(self.context, self.step)
            run = (self.model, self.family, protected.tokens, self.batch_size, "protect", extra)
            general = statistics_module.collect(*run)
            scores["protect_scores"] = scorer.compute(self._evidence(general))
        choices = {} if self.context.now.grams is None else self.context.now.grams.choices
        if choices:
            say(f"round {self.step.number}: {ridge.in_words(choices)}")
        if taken.tokens_U is not None:
            say(report.experts_line(self.step.number, taken.tokens_U, taken.square_LI.shape[1]))
            scores |= expert_choice.owners(self.model, self.family)
        return {**taken.tensors(), **ridge.tensors(choices), **scores}

    def _evidence(self, taken: Statistics) -> Evidence:
        config, samples = self.context.config, None
        if SCORERS[config.score.scorer].reads_samples:
            protected = self.context.inputs.protected
            assert protected is not None
            # the scorer reads whole documents, cut to what training sees of one
            own = self.context.data.corpus.subsets[self.step.number - 1]
            reasoning = [ids[: config.data.sequence_length] for ids in own]
            samples = Samples(reasoning=reasoning, general=protected.samples)
        return Evidence(
            statistics=taken,
            model=self.model,
            family=self.family,
            seed=config.run.seed * 1000 + self.step.number,
            grams=self.context.now.grams,
            samples=samples,
        )

    def _statistics(self) -> Statistics:
        """The statistics that the last round's recovery collected for this round, or else those of
        a calibration pass over the first of this round's data.
        """
        during_recovery = self.context.config.score.score_during_recovery
        taken = self.context.folder.round(self.step.number - 1).next_statistics()
        # missing in the first round, and where the last round had nothing to train
        if during_recovery and taken.given():
            return Statistics(**taken.read())
        found, self.context.now.grams = self._collect(self.tokens(), "calibrate")
        return found

    def _collect(
        self, tokens: "PackedTokens", description: str
    ) -> "tuple[Statistics, GramMatrices | None]":
        """Run these tokens through the model; return the statistics for scores, and the Gram
        matrices for compensation or for a scorer that reads them (else None).

        Both come from the same pass where the matrices fit in memory.
        """
        config, protected = self.context.config, self.context.inputs.protected
        extra = needed_statistics(self.context, self.step)
        own = (self.model, self.family, tokens, self.batch_size, description, extra)
        removes_neurons = kind_of(self.step).size == "width"
        if not (removes_neurons and self.reads_grams):
            return statistics_module.collect(*own), None
        other = protected.tokens if protected is not None else None
        given = None if config.score.ridge == "auto" else config.score.ridge
        share = config.score.protect_share
        return statistics_module.collect_with_grams(*own, other, share, given)

    def _kept_once(self) -> "dict[str, Tensor] | None":
        """With --score-once, the scores of the first round of this kind, for what is left of the
        model; None in that round itself, and without --score-once.
        """
        number, schedule = self.step.number, self.context.rounds.schedule
        first = next(each.number for each in schedule if each.kind == self.step.kind)
        if not self.context.config.score.score_once or first == number:
            return None
        tensors = self.context.folder.round(first).statistics.read()
        scores: dict[str, Tensor] = {
            name: tensors[name] for name in ("scores", "protect_scores") if name in tensors
        }
        # every plan since then removed some of the scored neurons or layers
        for each in range(first, number):
            plan = read_plan(self.context.folder.round(each))
            scores = {name: compact.follow(values, plan) for name, values in scores.items()}
        return {"num_tokens": tensors["num_tokens"], **scores}
