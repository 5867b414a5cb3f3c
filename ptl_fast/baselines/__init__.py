"""Methods of others to compare with, as entries beside our own: SliceGPT, and the rule that the
paper's authors published.

Their code is imported when it runs: a dry run reads these dicts and may not take seconds to start.
"""

from typing import TYPE_CHECKING

from ptl_fast.pruning import round_kinds
from ptl_fast.pruning.round_kinds import RoundKind, plan_without_scores
from ptl_fast.pruning.schedule import Round
from ptl_fast.scoring import scorers
from ptl_fast.scoring.scorers import Evidence, Scorer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.pruning.round_kinds import PruningWork


def _authors_rule(evidence: Evidence) -> "Tensor":
    from ptl_fast.baselines import authors_rule

    return authors_rule.score(evidence)


def _slice(plan: "PruningPlan", work: "PruningWork") -> "dict[str, Tensor]":
    from ptl_fast.baselines import slicing

    assert plan.hidden_size is not None
    tokens = work.calibration_tokens()
    work.model, eigenvalues = slicing.rotate_and_slice(
        work.model, tokens, plan.hidden_size, work.batch_size
    )
    return {"eigenvalues": eigenvalues}


def _no_half(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return None, "slicing is one step"


def slicing_schedule(slice_hidden: float, original: "PretrainedConfig") -> list[Round]:
    """The one round of --slice-hidden.

    Raises:
        ValueError: the size rounds to zero or to all dimensions, or the model type is not known.
    """
    from ptl_fast.baselines import slicegpt

    hidden_size = slicegpt.sliced_size(slice_hidden, original.hidden_size)
    slicegpt.sliced_config(original, hidden_size)  # says so now if this type cannot be sliced
    return [
        Round(
            number=1,
            kind="hidden",
            width=original.intermediate_size,
            num_layers=original.num_hidden_layers,
            recovery_share=1.0,
            hidden_size=hidden_size,
        )
    ]


SCORERS = {
    **scorers.SCORERS,
    "reference": Scorer(
        compute=_authors_rule,
        reads_samples=True,
        reads_protected=True,
        measures=False,
        redundant_below=0.0,
    ),
}
ROUND_KINDS = {
    **round_kinds.ROUND_KINDS,
    "hidden": RoundKind(plan=plan_without_scores, apply=_slice, halve=_no_half, unit="directions"),
}
