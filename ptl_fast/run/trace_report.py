"""What a run says about its own traces: on the console, in the dry run, in the report."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import markdown
from ptl_fast.model import flops
from ptl_fast.run import questions, this_machine
from ptl_fast.run.rounds import data_amounts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.data.traces import Tracer
    from ptl_fast.pruning.schedule import Round

HEADER = ["model", "asked", "ended by itself", "judged", "right", "kept", "mean tokens", "seconds"]


def beginning(tracer: "Tracer", num_tokens: float | None) -> str:
    """Say what is about to be made."""
    sampling = tracer.sampling
    form = "in its chat template" if tracer.form.is_chat else "in --template's form"
    drawn = (
        f"temperature {sampling.temperature:g}"
        if sampling.temperature
        else ("the likeliest token each time")
    )
    amount = "all of them" if num_tokens is None else f"until {round(num_tokens):,} tokens are kept"
    return (
        f"Own traces: the model answers the data's questions {form}, {amount}; {drawn}, at most"
        f" {sampling.max_new_tokens} tokens each."
    )


def sentence(summary: dict[str, Any], number: int | None = None) -> str:
    """Say in one sentence how the traces turned out.

    Args:
        number: the round before which they were renewed; None for the original's.
    """
    whose = "Own traces" if number is None else f"Round {number}: own traces renewed"
    judged = (
        f"{summary['right']} of {summary['judged']} judged right, " if summary["judged"] else ""
    )
    return (
        f"{whose}: {summary['asked']} asked, {summary['finished']} ended by itself, {judged}"
        f"{summary['kept']} kept; {summary['mean_tokens']:.0f} tokens each, in"
        f" {summary['seconds']:.0f} s."
    )


def prediction(
    config: "Config", schedule: "list[Round]", original: "PretrainedConfig", speed: float
) -> str:
    """Say for a dry run how many tokens --traces will generate at most, and how long that takes.

    A step of decoding reads all weights once, in bf16, and gives each answer of the batch a token.
    Answers that are not kept come on top: how many is not known before.

    Args:
        speed: bytes a second that the GPUs read, all together.
    """
    settings, amounts = config.traces, data_amounts(config, schedule)
    num_tokens = questions.num_trace_tokens(config, amounts.num_tokens)
    if settings.traces_number is not None:
        longest = settings.max_tokens(getattr(original, "max_position_embeddings", None))
        most = settings.traces_number * longest
        num_tokens = most if num_tokens is None else min(num_tokens, most)
    assert num_tokens is not None, "questions.check"
    renewed = sum(amounts.shares[1:]) * num_tokens if settings.traces_every_round else 0
    weights = 2 * flops.count_weights(original).num_parameters
    hours = (num_tokens + renewed) / settings.traces_batch * weights / speed / 3600
    again = f" and {renewed:,.0f} before later rounds" if renewed else ""
    return (
        f"Own traces: at most {num_tokens:,.0f} tokens that are kept, their prompts among them,"
        f" before the first round{again}; {hours:.1f} hours on"
        f" {this_machine.named(config.run.dry_run_gpus)}, each with"
        f" {settings.traces_batch} answers at once, reading its weights at {speed / 1e9:,.0f} GB/s"
        " in all. Answers that are not kept come on top."
    )


def section(summaries: list[dict[str, Any]]) -> str:
    """The report's table of traces: a row for the original model, and one for each renewal."""
    rows = [HEADER]
    for each in summaries:
        name = "original" if each["round"] == 1 else f"before round {each['round']}"
        counts = [str(each[key]) for key in ("asked", "finished", "judged", "right", "kept")]
        rows.append([name, *counts, f"{each['mean_tokens']:.0f}", f"{each['seconds']:.0f}"])
    return markdown.table(rows)
