"""What a run leaves for people and for other programs: the report, and the result in final/."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base.console import say
from ptl_fast.baselines import slicegpt
from ptl_fast.model import loading
from ptl_fast.run import quality_gate, report
from ptl_fast.run.environment import environment
from ptl_fast.run.stored import remove

if TYPE_CHECKING:
    from ptl_fast.run.context import RunContext

SIZE = ("num_parameters", "num_layers", "width", "flops_per_token", "eval")
HOW_TO_LOAD = """Load the result:

{imports}    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{final}")
    tokenizer = AutoTokenizer.from_pretrained("{final}")"""


def write_report(context: "RunContext", final: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write report.json and report.md; returns what is in report.json.

    Args:
        final: the result's size and evaluation, once there is one.
    """
    content: dict[str, Any] = {
        "environment": environment(context.device),
        "config": context.config.flat(),
        "dense": context.dense,
        "rounds": context.records,
        "final": final,
    }
    if context.rounds.gate_on is not None:
        content["decisions"] = context.rounds.decisions_as_json()
        content["stopped"] = quality_gate.stopped_sentence(context.rounds.decisions)
    context.folder.report.write(content)
    context.folder.write_report(report.to_markdown(content, _how_to_load(context)))
    return content


def finish(context: "RunContext") -> dict[str, Any]:
    """Publish the last round's model as final/, and say where everything is."""
    folder, number = context.folder, len(context.records)
    last = context.records[-1] if context.records else context.dense
    content = write_report(context, {name: last[name] for name in SIZE})
    name, settings = context.config.model.model, context.config.model
    assert name is not None
    if not folder.final.exists():
        source = folder.round(number).model()
        if not number:  # the quality gate let no round pass
            original = loading.load_model(name, settings, context.device)
            source.save(original, context.inputs.tokenizer)
        folder.publish_final(source, report.model_card(content, name, _is_sliced(context)))
    remove(folder.round(0).path, folder.round(number).optimizer_state().path)
    where = f"Result: {folder.final.path}   Report: {folder.path / 'report.md'}"
    stopped = f"{content['stopped']}\n" if content.get("stopped") else ""
    say(f"{stopped}{where}\n\n{_how_to_load(context)}")
    return content


def _is_sliced(context: "RunContext") -> bool:
    """Whether the result needs ptl_fast to load."""
    return context.config.prune.slice_hidden is not None or slicegpt.is_sliced(context.original)


def _how_to_load(context: "RunContext") -> str:
    imports = ""
    if _is_sliced(context):
        imports = (
            "    import ptl_fast.slicegpt  # without it, transformers refuses this model type\n"
        )
    return HOW_TO_LOAD.format(final=context.folder.final.path, imports=imports)
