"""Evaluate the model in memory: on the evaluation tasks, and on until-recovered's held-out text."""

from typing import TYPE_CHECKING, Any

from ptl_fast.evaluation import tasks as eval_tasks
from ptl_fast.evaluation.nll import NLL, NLL_MAX_LENGTH, answer_nll
from ptl_fast.run import sizes

if TYPE_CHECKING:
    from ptl_fast.base.stored import JsonFile
    from ptl_fast.run.context import RunContext


def evaluate(
    context: "RunContext", description: str, answers: "JsonFile"
) -> dict[str, dict[str, float]]:
    """Run the tasks of --eval-tasks on the model in memory; return {task: {metric: value}}.

    All ranks must call this.

    Args:
        description: label of the progress bar.
        answers: where {task: answers} are written if a task asks for answers. The caller writes
            the values afterwards, so that where these are done the answers are too.

    Raises:
        Diverged: a value is NaN or infinite; raised on all ranks.
    """
    settings, inputs = context.config.evaluation, context.inputs
    # without loading a model that --stream has left on the disk
    if not context.tasks:
        return {}
    found, given = eval_tasks.run_tasks(
        context.model,
        inputs.tokenizer,
        context.tasks,
        inputs.nll_documents,
        inputs.loaded_tasks,
        batch_size=settings.eval_batch,
        limit=settings.eval_limit,
        description=description,
    )
    if given:
        answers.write(given)
    return found


def checked_nll(context: "RunContext") -> float:
    """NLL (nats per token) of the held-out text by which a round knows that it has recovered.

    For --recovery-split until-recovered; the evaluation tasks use other held-out documents.
    """
    inputs, batch_size = context.inputs, context.config.evaluation.eval_batch
    documents = inputs.checked_documents
    # cut to the same length in every round, so the values can be compared with dense["checked_nll"]
    found = answer_nll(context.model, inputs.tokenizer, documents, batch_size, NLL_MAX_LENGTH)
    return found[NLL]


def measure_dense(context: "RunContext") -> dict[str, Any]:
    """The content of dense.json: the original model's size and evaluation.

    With --recovery-split until-recovered also its NLL on the held-out text, "checked_nll", from
    which each round's target follows.
    """
    length = context.config.data.sequence_length
    # None: the size before any round
    size = sizes.predicted_size(context.original, None, length)
    dense = {**size, "eval": evaluate(context, "dense", context.folder.dense_answers)}
    # checked_documents are read for until-recovered alone
    if not context.inputs.checked_documents:
        return dense
    return {**dense, "checked_nll": checked_nll(context)}
