"""Measuring the run's model: the evaluation tasks, and the held-out text of until-recovered."""

from typing import TYPE_CHECKING, Any

from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.evaluation.nll import NLL, NLL_MAX_LENGTH, answer_nll
from ptl_fast.run import sizes

if TYPE_CHECKING:
    from ptl_fast.run.context import RunContext


def evaluate(context: "RunContext", description: str) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of the model as it is now.

    Raises:
        Diverged: a value is NaN or infinite; on all ranks.
    """
    settings, inputs = context.config.evaluation, context.inputs
    return eval_tasks.run_tasks(
        context.model,
        inputs.tokenizer,
        context.tasks,
        inputs.nll_documents,
        inputs.lm_eval_tasks,
        batch_size=settings.eval_batch,
        limit=settings.eval_limit,
        description=description,
    )


def checked_nll(context: "RunContext") -> float:
    """NLL of the held-out text by which rounds know that they have recovered."""
    inputs, batch_size = context.inputs, context.config.evaluation.eval_batch
    documents = inputs.checked_documents
    found = answer_nll(context.model, inputs.tokenizer, documents, batch_size, NLL_MAX_LENGTH)
    return found[NLL]


def measure_dense(context: "RunContext") -> dict[str, Any]:
    """The original's size and evaluation, and its NLL of the held-out text of until-recovered."""
    length = context.config.data.sequence_length
    size = sizes.predicted_size(context.original, None, length)
    dense = {**size, "eval": evaluate(context, "dense")}
    if not context.inputs.checked_documents:
        return dense
    return {**dense, "checked_nll": checked_nll(context)}
