"""The first half of a round: score the model's neurons or layers, plan what goes, and remove it.

How a kind of round plans and prunes is in ptl_fast.pruning.round_kinds; this module gives it scores
and calibration data from the run's context, through the class Work.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ptl_fast.baselines import SCORERS
from ptl_fast.pruning import compact
from ptl_fast.pruning import plan as plan_module
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.pruning.round_kinds import Scores
from ptl_fast.recovery import next_prune_penalty, optimizer_state
from ptl_fast.run.rounds import kind_of
from ptl_fast.scoring import statistics as statistics_module
from ptl_fast.scoring.gram import GramMatrices
from ptl_fast.scoring.scorers import LAYER_SCORERS, Evidence, Samples
from ptl_fast.scoring.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.recovery.task import OptimizerState
    from ptl_fast.run.context import RunContext
    from ptl_fast.scoring.statistics import Extra


def plan_round(context: "RunContext", step: "Round") -> dict[str, Any]:
    """Decide what the round removes; returns the PruningPlan as a dict, for plan.json.

    The statistics and scores behind it are written to statistics.safetensors. A run killed before
    the caller has written plan.json decides again and overwrites them.
    """
    plan, kept = kind_of(step).plan(step, Work(context, step))
    # a round that only trains has no scores
    if kept:
        context.folder.round(step.number).statistics.write(kept)
    return dataclasses.asdict(plan)


def prune(
    context: "RunContext", step: "Round", plan: PruningPlan, *, weights_follow: bool = False
) -> None:
    """Make the model in memory smaller as the plan says.

    With --keep-optimizer-state, the optimizer state that the round before left is loaded and cut to
    the same shapes.

    Args:
        weights_follow: whether a checkpoint of the round's recovery is loaded next. Then only the
            shapes matter, and the compensation by least squares is skipped.
    """
    now, kind, files = context.now, kind_of(step), context.folder.round(step.number)
    now.optimizer_state = None
    # --final-recovery prunes nothing and starts from a fresh optimizer
    if kind.is_final:
        return
    before = context.folder.round(step.number - 1).optimizer_state()
    # missing in the first round, and where earlier rounds had nothing to train
    if before.exists():
        now.optimizer_state = optimizer_state.from_tensors(before.read())
    work = Work(context, step, compensates=context.config.prune.compensate and not weights_follow)
    kept = kind.apply(plan, work)
    # the Gram matrices belong to the unpruned weights, and are large
    now.grams = None
    if kept:
        files.statistics.write(kept)


def next_penalty(context: "RunContext", following: "Round") -> "Callable[[], Tensor] | None":
    """Plan the next round during this one's recovery; return --anticipate's penalty on what it
    will remove, a function that computes the term added to the loss (None: no penalty).

    The plan is written to the next round's folder, and that round follows it.
    """
    # on resume the plan is read: the model has changed since, and would give another one
    files = context.folder.round(following.number)
    files.plan.once(lambda: plan_round(context, following))
    plan = files.read_plan()
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


class Work:
    """The run's side of ptl_fast.pruning.round_kinds.PruningWork: what a kind of round may ask for.

    Scores and Gram matrices are computed when they are asked for, so a round that needs none makes
    no calibration pass.
    """

    def __init__(self, context: "RunContext", step: "Round", compensates: bool = True) -> None:
        config = context.config
        assert isinstance(config.prune.width_multiple, int)
        self.context, self.step = context, step
        self.compensates = compensates and config.prune.compensate
        self.family, self.batch_size = context.now.family, config.trainer.micro_batch
        self.threshold, self.width_multiple = config.prune.threshold, config.prune.width_multiple

    @property
    def model(self) -> Any:
        return self.context.now.model

    @model.setter
    def model(self, smaller: Any) -> None:
        self.context.now.model = smaller

    @property
    def optimizer_state(self) -> "OptimizerState | None":
        return self.context.now.optimizer_state

    def calibration_tokens(self) -> "PackedTokens":
        score = self.context.config.score
        return self.context.data.calibration(self.step.number, score.calibration_tokens)

    def neuron_scores(self) -> Scores:
        """The neurons' scores, and which neurons are protected or redundant."""
        name, config = self.context.config.score.scorer, self.context.config
        scorer, kept = SCORERS[name], self._kept_once() or self._measured_neurons()
        scores, protected, redundant = kept["scores"], None, None
        if "protect_scores" in kept:
            protected = plan_module.protect(kept["protect_scores"], config.score.protect_share)
        # --threshold takes the place of the scorer's own rule for redundant neurons
        if self.threshold is not None:
            redundant = scorer.per_token(scores, kept["num_tokens"]) <= self.threshold
        elif scorer.redundant_below is not None:
            redundant = scores < scorer.redundant_below
        return Scores(
            scorer=name, values=scores, kept=kept, protected_LK=protected, redundant_LI=redundant
        )

    def layer_scores(self) -> Scores:
        """The layers' scores; with the statistics behind them, for the round's folder."""
        name = self.context.config.score.layer_scorer
        kept = self._kept_once()
        if kept is None:
            taken = self._statistics()
            kept = {**taken.tensors(), "scores": LAYER_SCORERS[name].compute(taken)}
        return Scores(scorer=name, values=kept["scores"], kept=kept)

    def grams(self) -> "Iterable[Tensor]":
        """Each layer's Gram matrix on the calibration tokens, (width, width)."""
        now = self.context.now
        # missing if a resumed run read the plan from disk, or if no calibration pass was made: the
        # scores came from an earlier round or from the statistics of a recovery
        if now.grams is None:
            _, now.grams = self._collect(self.calibration_tokens(), "compensate")
        assert now.grams is not None
        return now.grams

    def _measured_neurons(self) -> "dict[str, Tensor]":
        """The round's statistics and its scores, (num_layers, width), by their names in the file.

        With --protect there are also "protect_scores" on that text, by which neurons are protected,
        unless the scorer takes that text into account itself.
        """
        config, protected = self.context.config, self.context.inputs.protected
        scorer, taken = SCORERS[config.score.scorer], self._statistics()
        scores = {"scores": scorer.compute(self._evidence(taken))}
        if protected is not None and protected.tokens is not None and not scorer.reads_protected:
            general = statistics_module.collect(
                self.model,
                self.family,
                protected.tokens,
                self.batch_size,
                "protect",
                needed_statistics(self.context, self.step),
            )
            scores["protect_scores"] = scorer.compute(self._evidence(general))
        return {**taken.tensors(), **scores}

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
        if during_recovery and taken.exists():
            return Statistics(**taken.read())
        found, self.context.now.grams = self._collect(self.calibration_tokens(), "calibrate")
        return found

    def _collect(
        self, tokens: "PackedTokens", description: str
    ) -> "tuple[Statistics, GramMatrices | None]":
        """Run these tokens through the model; return the statistics for scores, and the Gram
        matrices for compensation or for a scorer that reads them (else None).

        Both come from the same pass where the matrices fit in memory.
        """
        config, grams = self.context.config, None
        removes_neurons = kind_of(self.step).size == "width"
        if removes_neurons and (SCORERS[config.score.scorer].reads_grams or self.compensates):
            protected = self.context.inputs.protected
            grams = GramMatrices(
                self.model,
                self.family,
                tokens,
                self.batch_size,
                protected.tokens if protected is not None else None,
                config.score.protect_share,
            )
        extra = needed_statistics(self.context, self.step)
        found = statistics_module.collect(
            self.model, self.family, tokens, self.batch_size, description, extra, grams
        )
        return found, grams

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
            plan = self.context.folder.round(each).read_plan()
            scores = {name: compact.follow(values, plan) for name, values in scores.items()}
        return {"num_tokens": tensors["num_tokens"], **scores}
