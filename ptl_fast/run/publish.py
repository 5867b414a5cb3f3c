"""Write a run's results: report.* and sizes/ after every round, and the last model in final/."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import distributed
from ptl_fast.base.console import say
from ptl_fast.base.stored import remove
from ptl_fast.baselines import flap, slicegpt
from ptl_fast.model import card_metadata, loading, parts
from ptl_fast.run import (
    example_answers,
    history,
    model_card,
    push,
    quality_gate,
    report,
    report_html,
    save_step,
    size_folders,
    summary,
    tables,
    trace_step,
    verdict,
)
from ptl_fast.run.environment import environment

if TYPE_CHECKING:
    from ptl_fast.base.stored import ModelFolder
    from ptl_fast.run.context import RunContext

# num_experts only where there are some
SIZE = ("num_parameters", "num_layers", "width", "num_experts", "flops_per_token", "eval")
HOW_TO_LOAD = """Load the result:

{imports}    from transformers import {loader}, AutoTokenizer
    model = {loader}.from_pretrained("{final}")
    tokenizer = AutoTokenizer.from_pretrained("{final}")"""


def write_report(context: "RunContext", final: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write report.json, .md and .html, each by atomic rename; return the content of report.json.

    Called after every round, so an interrupted run has the report of its finished rounds.

    Args:
        final: the result's size and evaluation; None while the run goes on.
    """
    content: dict[str, Any] = {
        "environment": environment(context.device),
        "config": context.config.flat(),
        "text": context.data.summary(context.config),
        "dense": context.dense,
        "rounds": context.records,
        "final": final,
    }
    traces = trace_step.summaries(context)
    if traces:
        content["traces"] = traces
    examples = example_answers.collect(context.folder, context.records)
    if examples:
        content["examples"] = examples
    # without a quality gate the report has no word about one
    if context.rounds.gate_on is not None:
        content["decisions"] = context.rounds.decisions_as_json()
        content["stopped"] = quality_gate.stopped_sentence(context.rounds.decisions)
    if context.config.run.keep_sizes and context.records:
        content["sizes"] = _write_sizes(context, content)
    if final:
        content["bytes_on_disk"] = _bytes_on_disk(context)
    context.folder.report.write(content)
    text = report.to_markdown(content, _how_to_load(context))
    context.folder.write_report(text)
    context.folder.write_page(
        report_html.to_html(content, history.read_if_possible(context.folder.path), text)
    )
    return content


def _bytes_on_disk(context: "RunContext") -> int:
    """Bytes of the result's weights; 0 where no round was finished, and it is the original."""
    # final/ is made from the round's model after the report
    kept = context.folder.round(len(context.records)).model().path
    return size_folders.weights_bytes(kept if kept.is_dir() else context.folder.final.path)


def _write_sizes(context: "RunContext", content: dict[str, Any]) -> list[dict[str, Any]]:
    """Copy the rounds' models that are not in sizes/ yet, and write its table; return its rows.

    Called after each round, while the round's weights are still kept.
    """
    for record in context.records:
        number = record["round"]
        # the quality gate may have made a round the last one that was not when it ended
        if not size_folders.is_published_here(context, number):
            context.folder.size(number).remove()
            continue
        source = context.folder.round(number).model()
        # not kept by a run that began without sizes/, or there already
        if source.path.is_dir():
            until = {**content, "rounds": context.records[:number], "final": record}
            context.folder.publish_size(number, _card(context, until, source))
    rows = size_folders.entries(context)
    context.folder.sizes.write(rows)
    context.folder.write_sizes(size_folders.to_markdown(context.dense, rows))
    return rows


def finish(context: "RunContext") -> dict[str, Any]:
    """Publish the last round's model as final/, print where everything is, and clean up.

    final/ is a Hugging Face folder with a model card, complete or absent: it is renamed into place.
    Calling this again on a finished run writes the report anew and leaves final/ as it is.

    Returns:
        The content of report.json.
    """
    folder, number = context.folder, len(context.records)
    last = context.records[-1] if context.records else context.dense
    content = write_report(context, {name: last[name] for name in SIZE if name in last})
    name, settings = context.config.model.model, context.config.model
    assert name is not None
    # what has become of a damaged one was said before the first stage
    if not distributed.agree(distributed.is_main() and folder.final.is_whole()):
        source = folder.round(number).model()
        # the quality gate let no round pass: the result is the original, saved as round 0's model
        if not number:
            original = loading.load_model(name, settings, context.device)
            save_step.save_model(context, source, original)
        folder.publish_final(source, _card(context, content, source))
    # only now that final/ exists: a run killed before would have to save the original again
    remove(folder.round(0).path, folder.round(number).optimizer_state().path)
    where = f"Result: {folder.final.path}   Report: {folder.page}"
    stopped = f"{content['stopped']}\n" if content.get("stopped") else ""
    stopped += "".join(f"{line}\n" for line in summary.sentences(content))
    for line in verdict.sentences(context.records, *tables.leading_metric(context.dense)):
        stopped += f"{line}\n"
    say(f"{stopped}{where}\n\n{_how_to_load(context)}")
    _push(context)
    return content


def _push(context: "RunContext") -> None:
    """Upload the result if --push-to-hub asks for it; after all else, as it may fail."""
    name = context.config.run.push_to_hub
    if name is not None and distributed.is_main():
        say(f"Uploaded to {push.upload(context.folder.final.path, name)}")


def _card(context: "RunContext", content: dict[str, Any], source: "ModelFolder") -> str:
    """The model card of what a report's last round saved; its base model is the original."""
    name, settings = context.config.model.model, context.config.model
    assert name is not None
    return model_card.model_card(
        content,
        name,
        _needed_import(context, len(content["rounds"])),
        card_metadata.read(name, settings),
        card_metadata.hub_name(name),
        parts.saved_fields(source.path),
        parts.loader(context.original),
        parts.parameters_beside(context.original),
    )


def _needed_import(context: "RunContext", num_rounds: int) -> str | None:
    """The module without which transformers cannot load the model after so many rounds; None for
    an ordinary one.
    """
    original, finished = context.original, context.rounds.schedule[:num_rounds]
    if context.config.prune.slice_hidden is not None or slicegpt.is_sliced(original):
        return "ptl_fast.slicegpt"
    # a type whose down projections may have a bias anyway needs no other class for it
    gets_bias = any(step.down_bias for step in finished) and not getattr(
        original, "mlp_bias", False
    )
    return "ptl_fast.flap" if gets_bias or flap.is_biased(original) else None


def _how_to_load(context: "RunContext") -> str:
    """The Python lines that load the result, for the console and the report."""
    imports, needed = "", _needed_import(context, len(context.records))
    if needed is not None:
        imports = f"    import {needed}  # without it, transformers refuses this model type\n"
    final, loader = context.folder.final.path, parts.loader(context.original)
    return HOW_TO_LOAD.format(final=final, imports=imports, loader=loader)
