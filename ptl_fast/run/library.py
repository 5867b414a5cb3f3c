"""The parts of a round for Python, beside ``compress``: statistics, plan, removal, and methods of
one's own. ``ptl_fast`` has all of these names.

Shape suffixes: L layers, I FFN width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast.base.console import quieted
from ptl_fast.baselines import SCORERS
from ptl_fast.config.config import Config as CompressConfig
from ptl_fast.pruning.plan import PruningPlan, plan_neurons
from ptl_fast.pruning.schedule import Round
from ptl_fast.recovery import estimate
from ptl_fast.recovery.registry import RECOVERIES, Recovery
from ptl_fast.recovery.task import RecoveryResult, RecoveryTask
from ptl_fast.scoring.evidence import Evidence, Scorer

__all__ = [
    "CompressConfig",
    "collect_statistics",
    "compact_",
    "make_plan",
    "register_recovery",
    "register_scorer",
]

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.scoring.statistics import Extra, Statistics

    Train = Callable[[PreTrainedModel, RecoveryTask], RecoveryResult | None]
    ScoreFunction = TypeVar("ScoreFunction", bound=Callable[[Evidence], Tensor])
    TrainFunction = TypeVar("TrainFunction", bound=Train)


def collect_statistics(
    model: "PreTrainedModel",
    data: "Sequence[str] | Sequence[Sequence[int]] | PackedTokens",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    sequence_length: int = 1024,
    batch_size: int = 2,
    extra: "Iterable[Extra]" = (),
    quiet: bool = True,
) -> "Statistics":
    """Run a model over text once, and return its neurons' and layers' statistics, on the CPU.

    ``square_LI`` holds each neuron's sum of squared activations over tokens, (num_layers, width)
    float64; ``change_L3`` what each layer does to the residual stream; ``num_tokens`` counts.

    Args:
        data: texts, for which ``tokenizer`` is needed; documents as token ids; or packed tokens.
        sequence_length: texts are packed into sequences of so many tokens, without attention from
            one to another.
        batch_size: sequences at once.
        extra: what else to collect, such as "sums" (see ``ptl_fast.scoring.statistics``).
        quiet: without a progress bar.

    Raises:
        ValueError: the data has fewer tokens than a sequence, or an activation is not finite.
    """
    from ptl_fast.data.packing import PackedTokens
    from ptl_fast.model.families import find_family
    from ptl_fast.model.parts import decoder_of
    from ptl_fast.scoring import statistics

    model = decoder_of(model)
    if not isinstance(data, PackedTokens):
        data = _packed(data, tokenizer, sequence_length)
    with quieted(everything=quiet):
        return statistics.collect(
            model, find_family(model), data, batch_size, extra=frozenset(extra)
        )


def make_plan(
    model: "PreTrainedModel",
    statistics: "Statistics",
    *,
    keep: float,
    width_multiple: int = 1,
    scorer: str = "output-change",
    seed: int = 0,
) -> PruningPlan:
    """Choose the neurons of each layer that stay: those with the highest scores.

    Args:
        statistics: of ``model`` as it is, from ``collect_statistics``.
        keep: fraction of the neurons that stays, in (0, 1).
        width_multiple: what the width that is left is rounded to a multiple of.
        scorer: a name of SCORERS that needs no more than statistics and weights; also one's own.
        seed: for the scorer random.

    Raises:
        ValueError: there is no such scorer, it needs more than ``statistics`` holds, or the width
            comes to none or all of the neurons.
    """
    from ptl_fast.config.checking import unknown
    from ptl_fast.model.families import find_family
    from ptl_fast.model.parts import decoder_of

    if scorer not in SCORERS:
        raise ValueError(unknown("scorer", scorer, SCORERS))
    chosen = SCORERS[scorer]
    if chosen.reads_grams or chosen.reads_samples:
        raise ValueError(
            f"scorer {scorer} needs more than statistics; compress(scorer=...) runs it, or take"
            " output-change"
        )
    num_layers, width = statistics.square_LI.shape
    left = round(keep * width / width_multiple) * width_multiple
    if not 0 < left < width:
        raise ValueError(
            f"keep={keep} of {width} neurons is {left} at multiples of {width_multiple}; between 1"
            f" and {width - 1} can stay"
        )
    model = decoder_of(model)
    evidence = Evidence(statistics=statistics, model=model, family=find_family(model), seed=seed)
    step = Round(number=1, kind="neurons", width=left, num_layers=num_layers, recovery_share=0.0)
    return plan_neurons(step, chosen.compute(evidence), None, scorer)


def compact_(model: "PreTrainedModel", plan: PruningPlan) -> None:
    """Remove what a plan says from a model, in place; its config says the new sizes. Of a model of
    several parts it is the text decoder that becomes smaller.

    What is left is an ordinary model: ``save_pretrained`` and ``from_pretrained`` do.
    """
    from ptl_fast.model.families import find_family
    from ptl_fast.model.parts import decoder_of
    from ptl_fast.pruning import compact

    model = decoder_of(model)
    compact.compact_(model, find_family(model), plan)


def register_scorer(name: str, **traits: Any) -> "Callable[[ScoreFunction], ScoreFunction]":
    """Decorate a function from ``Evidence`` to scores, so that ``scorer=name`` is it.

    The function returns (num_layers, width) float64 on the CPU; what scores lowest goes first.

    Args:
        traits: what else a run must know of it: fields of ``Scorer``, such as needs={"sums"}.

    Raises:
        ValueError: a scorer that ptl_fast brings has the name.
    """

    def register(compute: "ScoreFunction") -> "ScoreFunction":
        _check_free(name, SCORERS, OWN_SCORERS)
        needs = frozenset(traits.get("needs", ()))
        SCORERS[name] = Scorer(**{**traits, "compute": compute, "needs": needs})
        return compute

    return register


def register_recovery(name: str, **traits: Any) -> "Callable[[TrainFunction], TrainFunction]":
    """Decorate a function (model, task) that trains the model in place, so that ``recovery=name``
    is it.

    ``task`` is a ``RecoveryTask``: the round's tokens, how many to train on, a folder for
    checkpoints. The function may return a ``RecoveryResult``; without one, it has trained on as
    many tokens as the task asked for.

    Args:
        traits: what else a run must know of it: fields of ``Recovery``, such as on_text=False for
            training that needs none of the round's text.

    Raises:
        ValueError: a recovery that ptl_fast brings has the name.
    """

    def register(train: "TrainFunction") -> "TrainFunction":
        _check_free(name, RECOVERIES, OWN_RECOVERIES)
        on_text = traits.get("on_text", True)
        default = estimate.on_text if on_text else estimate.nothing
        given = {"estimate": default, "on_text": on_text, **traits}
        RECOVERIES[name] = Recovery(train=_with_result(train), **given)
        return train

    return register


OWN_SCORERS, OWN_RECOVERIES = frozenset(SCORERS), frozenset(RECOVERIES)
"""Names that cannot be given to other methods."""


def _check_free(name: str, registry: dict[str, Any], own: frozenset[str]) -> None:
    if name in own or not name or "," in name:
        raise ValueError(
            f"{name!r} is taken by ptl_fast, or no name; register the method under another one"
        )
    # defined once more, as notebooks do: the newer one counts
    registry.pop(name, None)


def _with_result(train: "Train") -> "Callable[[PreTrainedModel, RecoveryTask], RecoveryResult]":
    """The function with a result, where it returns none."""

    def trained(model: "PreTrainedModel", task: RecoveryTask) -> RecoveryResult:
        result = train(model, task)
        model.eval()
        if result is None:
            return RecoveryResult(num_steps=1, num_tokens=task.num_tokens)
        # a method that counts no steps has trained nevertheless
        return replace(result, num_steps=max(1, result.num_steps))

    return trained


def _packed(
    data: "Sequence[str] | Sequence[Sequence[int]]",
    tokenizer: "PreTrainedTokenizerBase | None",
    sequence_length: int,
) -> "PackedTokens":
    """Texts or token ids as packed sequences."""
    from ptl_fast.data import packing

    documents: Any = data
    if data and isinstance(data[0], str):
        if tokenizer is None:
            raise ValueError("texts need a tokenizer: collect_statistics(model, texts, tokenizer)")
        documents = [tokenizer(text).input_ids for text in data]
    pad = 0 if tokenizer is None else packing.padding_token(tokenizer)
    return packing.pack(documents, sequence_length, pad)
