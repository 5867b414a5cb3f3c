"""The model card, final/README.md: what a stranger on the hub needs to know of the result."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ptl_fast.base import markdown
from ptl_fast.config.checking import flag
from ptl_fast.config.config import Config
from ptl_fast.config.goal import GoalSettings
from ptl_fast.evaluation.chat import COSTS
from ptl_fast.model import engines
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.run import verdict
from ptl_fast.run.tables import leading_metric, show, table

# Settings that are about this machine, and not about what comes out. Goals are repeated by what
# they were solved into, --keep and --drop-layers, beside which they would be refused.
OF_THIS_MACHINE = ("output", "overwrite", "dry_run", "dry_run_gpus", "debug", "preset")
NOT_TO_REPEAT = {*OF_THIS_MACHINE, "push_to_hub", *(each.name for each in fields(GoalSettings))}
VERSIONS = ("ptl_fast", "torch", "transformers", "trl", "lm_eval")
PATH = re.compile(r"[^\s,=@]*/[^\s,=@]+")


def model_card(
    report: dict[str, Any],
    model_name: str,
    needed_import: str | None,
    original: dict[str, Any],
    hub_name: str | None,
    config: dict[str, Any],
    loader: str = "AutoModelForCausalLM",
    parameters_beside: int | None = None,
) -> str:
    """Return README.md of the compressed model.

    Args:
        report: the content of report.json of the finished run.
        model_name: the original model, as it was given.
        needed_import: the module without which transformers cannot load it (SliceGPT, FLAP).
        original: fields of the original's card (``card_metadata.read``).
        hub_name: the original's name on the hub, if it has one.
        config: the content of the result's config.json.
        loader: transformers' class that loads it.
        parameters_beside: of a model of several parts, the number of parameters of those beside
            the text decoder.
    """
    name = hub_name or Path(model_name).name
    parts = [
        _front_matter(report, original, hub_name),
        f"# {name}, compressed",
        _what(report, name, needed_import, loader),
    ]
    if parameters_beside is not None:
        parts.append(
            f"Its text decoder alone was pruned{_and_trained(report)}. Its other parts, of"
            f" {parameters_beside:,} parameters, are those of the original, and count as parameters"
            " above, but not in FLOPs per token of text. Nothing was measured with images or sound."
        )
    if report.get("stopped"):
        parts.append(report["stopped"])
    parts += verdict.sentences(report["rounds"], *leading_metric(report["dense"]))
    parts += [
        f"## Method\n\n{_method(report)}\n\n{table(report['dense'], report['rounds'])}",
        f"## Data\n\n{_data(report)}",
        f"## Evaluation\n\n{_evaluation(report)}",
        f"## Limits\n\n{_limits(report, needed_import, config)}",
        f"## How to reproduce\n\n{_reproduce(report)}",
    ]
    if original.get("license"):
        parts.append(
            f"## Licence\n\nThat of the original: {original['license']}. Its files are beside this"
            " card, where it had any."
        )
    return "\n\n".join(parts) + "\n"


def command(config: dict[str, Any]) -> str:
    """The command line that repeats a run: the settings that are not the defaults.

    Of local files only the names are told: a card is published.
    """
    defaults, words = Config().flat(), ["python", "-m", "ptl_fast.compress"]
    for name, value in config.items():
        if name in NOT_TO_REPEAT or value is None or value == defaults.get(name):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = text.lower() if isinstance(value, bool) else text
        words += [flag(name), without_folders(text)]
    return shlex.join(words)


def without_folders(text: str) -> str:
    """A setting's text in which each local path is replaced by its last part."""
    return PATH.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    is_local = path.startswith(("/", "~", ".")) or Path(path).exists()
    return Path(path).name if is_local else path


def _front_matter(report: dict[str, Any], original: dict[str, Any], hub_name: str | None) -> str:
    """The YAML that the hub reads."""
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields |= original
    # the hub takes a base model by its name there, and nothing else
    if hub_name is not None:
        fields["base_model"] = hub_name
        # the hub has no word for a model that was pruned and not trained
        if _is_trained(report):
            fields["base_model_relation"] = "finetune"
    if sets := _hub_data(report["config"]):
        fields["datasets"] = sets
    fields["tags"] = ["pruned", "ptl"]
    # one order, so that the same run writes the same card
    text = yaml.safe_dump(fields, sort_keys=True, allow_unicode=True, default_flow_style=False)
    return f"---\n{text}---"


def _hub_data(config: dict[str, Any]) -> list[str]:
    """Names on the hub among the sources of --data: OWNER/NAME[/FOLDER][:...][@SHARE]."""
    given = config["data"]
    sources = given if isinstance(given, list | tuple) else str(given or "").split(",")
    names = set()
    for source in map(str, sources):
        found = re.match(r"[\w.-]+/[\w.-]+", source)
        if found is not None and not Path(source.partition("@")[0]).exists():
            names.add(found[0])
    return sorted(names)


def _is_trained(report: dict[str, Any]) -> bool:
    return any(record["recovery_steps"] for record in report["rounds"])


def _and_trained(report: dict[str, Any]) -> str:
    return " and trained" if _is_trained(report) else ""


def _what(report: dict[str, Any], name: str, needed_import: str | None, loader: str) -> str:
    """What it is, and how to load it."""
    dense, final = report["dense"], report["final"]
    parameters = final["num_parameters"] / dense["num_parameters"]
    flops = final["flops_per_token"] / dense["flops_per_token"]
    condition = "" if needed_import is None else f" after `import {needed_import}`"
    return (
        f"{name} made smaller with ptl_fast. Parameters: {parameters:.1%} of dense. FLOPs per"
        f" token: {flops:.1%} of dense. It loads with"
        f" `{loader}.from_pretrained`{condition}."
    )


def _method(report: dict[str, Any]) -> str:
    config = report["config"]
    # SliceGPT runs have one round and no Prune-Tune Loop
    if config["slice_hidden"] is not None:
        return "SliceGPT (arXiv 2401.15024)."
    recovery = ", ".join(_names(config["recovery"])) or "none"
    experts = ""
    if any(record["kind"] == "experts" for record in report["rounds"]):
        experts = f", whole experts by `{config['expert_scorer']}`"
    return (
        "The Prune-Tune Loop (arXiv 2602.04919): prune, recover by training, repeat. Rounds:"
        f" {len(report['rounds'])}; neurons scored by `{config['scorer']}`, layers by"
        f' `{config["layer_scorer"]}`{experts}; recovery: {recovery}. "pruned" is before recovery,'
        ' "recovered" after it.'
    )


def _names(value: Any) -> list[str]:
    """The names in a setting that lists some, or in its text."""
    names = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(name) for name in names if name in RECOVERIES]


def _data(report: dict[str, Any]) -> str:
    config = report["config"]
    data = config["data"]
    given = ", ".join(map(str, data)) if isinstance(data, list | tuple) else str(data)
    tokens = sum(record["recovery_tokens"] for record in report["rounds"])
    lines = [
        f"Scored and trained on: {without_folders(given)}; {config['calibration_tokens']:,}"
        f" calibration tokens a round, {tokens:,} recovery tokens in all."
    ]
    if config["protect"] is not None:
        lines.append(f"Protected skills: {without_folders(str(config['protect']))}.")
    if report.get("text"):
        lines.append(without_folders(report["text"]))
    return "\n\n".join(lines)


def _evaluation(report: dict[str, Any]) -> str:
    """The table of all metrics, of the dense model and of this one."""
    dense, final = report["dense"]["eval"], report["final"]["eval"]
    rows = [["task", "metric", "dense", "this model"]]
    rows += [
        [task, metric, show(value), show(final[task][metric])]
        for task, values in dense.items()
        for metric, value in values.items()
        if metric not in COSTS and metric in final.get(task, {})
    ]
    if not rows[1:]:
        return "Nothing was measured."
    limit = report["config"]["eval_limit"]
    measured = "all samples" if limit is None else f"the first {limit} samples"
    return f"On {measured} of each task:\n\n{markdown.table(rows)}"


def _limits(report: dict[str, Any], needed_import: str | None, config: dict[str, Any]) -> str:
    lines = [
        "What the data above lacks may be lost, also where the original could do it. Nothing but"
        " the tasks above was measured: no other language, no safety, no longer context.",
        "The original's own limits and biases hold for this model too.",
    ]
    if not _is_trained(report):
        lines.append("It was not trained after pruning.")
    if needed_import is not None:
        lines.append(
            f"Only transformers with `{needed_import}` loads it: inference engines do not know this"
            " model type."
        )
    lines += engines.misread_by(SimpleNamespace(**{"model_type": "", **config}))
    return "\n".join(f"- {line}" for line in lines)


def _reproduce(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {report['environment'][name]}" for name in VERSIONS)
    return (
        f"    {command(report['config'])}\n\nWith {versions}, Python"
        f" {report['environment']['python']}, on {report['environment']['device']}."
    )
