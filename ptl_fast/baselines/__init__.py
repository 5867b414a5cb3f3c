"""Baselines: other methods to compare with, in the same dicts as our own scorers and rounds.

They are SliceGPT (--slice-hidden), the pruning rule in the code that the paper's authors published
(--scorer reference), and the scores of Minitron, Wanda, LLM-Pruner and FLAP (docs/peers.md). Their
code is imported when it runs: a dry run reads these dicts and must not spend seconds on importing
torch.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ptl_fast.baselines import peers
from ptl_fast.model.widths import ffn_width
from ptl_fast.pruning import round_kinds
from ptl_fast.pruning.round_kinds import RoundKind, plan_without_scores
from ptl_fast.pruning.schedule import Round
from ptl_fast.scoring import scorers
from ptl_fast.scoring.evidence import Evidence, Scorer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.pruning.round_kinds import PruningWork


def _authors_rule(evidence: Evidence) -> "Tensor":
    from ptl_fast.baselines import authors_rule

    return authors_rule.score(evidence)


def _slice(plan: "PruningPlan", work: "PruningWork") -> "tuple[PreTrainedModel, dict[str, Tensor]]":
    from ptl_fast.baselines import slicing

    # the plan only holds the size: which directions go is decided by PCA while slicing
    assert plan.hidden_size is not None
    model, eigenvalues = slicing.rotate_and_slice(
        work.model, work.tokens, plan.hidden_size, work.batch_size
    )
    return model, {"eigenvalues": eigenvalues}


def _add_flap_bias_(*removed: Any) -> None:
    from ptl_fast.baselines import flap

    flap.add_bias_(*removed)


def _no_half(removed: int, multiple: int) -> tuple[int | None, str | None]:
    return None, "slicing is one step"


def slicing_schedule(slice_hidden: float, original: "PretrainedConfig") -> list[Round]:
    """The schedule of --slice-hidden: one round, which slices the residual stream.

    Args:
        slice_hidden: fraction of the residual stream's dimensions that stays.
        original: config of the original model.

    Raises:
        ValueError: the fraction rounds to zero or to all dimensions, or SliceGPT is not implemented
            for this model type.
    """
    from ptl_fast.baselines import slicegpt

    hidden_size = slicegpt.sliced_size(slice_hidden, original.hidden_size)
    # for its error: a model type that cannot be sliced is refused now
    slicegpt.sliced_config(original, hidden_size)
    return [
        Round(
            number=1,
            kind="hidden",
            width=ffn_width(original),
            num_layers=original.num_hidden_layers,
            recovery_share=1.0,
            hidden_size=hidden_size,
        )
    ]


# these two, and not those of scoring and pruning, are what a run looks names up in
SCORERS = {
    **scorers.SCORERS,
    "reference": Scorer(
        compute=_authors_rule,
        reads_samples=True,
        reads_protected=True,
        measures=False,
        redundant_below=0.0,
    ),
    "minitron": Scorer(compute=peers.minitron, needs=frozenset({"documents"})),
    "wanda": Scorer(compute=peers.wanda, grows_with_tokens=True, weighs_tokens=True),
    "llm-pruner": Scorer(compute=peers.llm_pruner, needs=frozenset({"weight_gradients"})),
    "flap": replace(scorers.SCORERS["fluctuation"], add_bias_=_add_flap_bias_),
}
ROUND_KINDS = {
    **round_kinds.ROUND_KINDS,
    "hidden": RoundKind(plan=plan_without_scores, apply=_slice, halve=_no_half, unit="directions"),
}
