"""Records -> report.md, the model card, and what is said about a round in one line."""

from typing import Any

from ptl_fast.base import markdown
from ptl_fast.baselines import ROUND_KINDS, SCORERS
from ptl_fast.recovery.registry import RECOVERIES
from ptl_fast.run import quality_gate
from ptl_fast.run.tables import show, table

REASONS = [
    "round",
    "went",
    "highest score that went",
    "lowest that stayed",
    "recovery tokens",
    "steps",
]


def redundant_line(number: int, num_redundant: list[int], num_removed: int) -> str:
    """How many neurons of each layer a round found redundant, and what that led to, in one
    sentence.
    """
    fewest, counts = min(num_redundant), ", ".join(map(str, num_redundant))
    line = (
        f"Round {number}: {fewest} to {max(num_redundant)} neurons a layer are redundant"
        f" ({counts}); {num_removed} went from each"
    )
    if not num_removed:
        line += ", so the round did not train"
    elif num_removed > fewest:
        line += ", those of lowest index where fewer are redundant"
    return line + "."


def unrewarded_line(number: int, details: dict[str, Any], extension: int = 0) -> str:
    """That a reward was 0 for all rollouts of a round, or of an extension of it, and what to try,
    in one sentence.
    """
    names, verb = (
        " and ".join(details["always_zero"]),
        "was" if len(details["always_zero"]) == 1 else "were",
    )
    found = (
        f"Round {number}{_extension(extension)}: {names} {verb} 0 for each of"
        f" {details['rollouts']} rollouts"
    )
    if not any(details["reward"]):
        found += ", so there was nothing to learn from"
    cut_off = sum(details["truncated"]) / len(details["truncated"])
    if cut_off > 0.5:
        return (
            f"{found}; {cut_off:.0%} of the responses were cut off: try a higher"
            " --grpo-response-tokens first."
        )
    return (
        f"{found}; try more continual pre-training first (--recovery cpt,grpo with more"
        " --recovery-tokens), or a smaller step"
        " (more --rounds)."
    )


def _extension(number: int) -> str:
    return f", extension {number}" if number else ""


def to_markdown(report: dict[str, Any], how_to_load: str) -> str:
    """report.json for people."""
    dense, final = report["dense"], report["final"]
    parts = ["# Compression report", table(dense, report["rounds"])]
    if report.get("stopped"):
        parts.append(f"**{report['stopped']}**")
    if final:
        parts.append(_summary(dense, final))
        parts.append(how_to_load)
    if report.get("decisions"):
        parts.append("## The quality gate\n\n" + _decisions(report["decisions"]))
    parts.append("## What went, and why\n\n" + _reasons(report))
    redundant = _redundant(report)
    if redundant:
        parts.append("## Redundant neurons\n\n" + redundant)
    if any(_on_problems(record) for record in report["rounds"]):
        parts.append("## Reinforcement learning\n\n" + _reinforcement(report["rounds"]))
    parts.append("## Evaluation\n\n" + _evaluations(report))
    parts.append("## Seconds per stage\n\n" + _seconds(report["rounds"]))
    for title in ("config", "environment"):
        parts.append(
            f"## {title.capitalize()}\n\n"
            + "\n".join(f"- {name}: {value}" for name, value in report[title].items())
        )
    return "\n\n".join(parts) + "\n"


def model_card(report: dict[str, Any], model_name: str, sliced: bool) -> str:
    """README.md of the compressed model; a ``sliced`` one, by this run or before it, needs ptl_fast
    to load.
    """
    one_round = report["config"]["slice_hidden"] is not None
    method = (
        "SliceGPT (arXiv 2401.15024)" if one_round else "the Prune-Tune Loop (arXiv 2602.04919)"
    )
    condition = " after `import ptl_fast.slicegpt`" if sliced else ""
    stopped = f"{report['stopped']}\n\n" if report.get("stopped") else ""
    return (
        f"---\nbase_model: {model_name}\ntags: [pruned, ptl]\n---\n\n# {model_name}, compressed\n\n"
        f"Made with ptl_fast by {method}. It loads with"
        f" `AutoModelForCausalLM.from_pretrained`{condition}.\n\n"
        f"{stopped}{table(report['dense'], report['rounds'])}\n\n{_summary(report['dense'], report['final'])}\n"
    )


def _summary(dense: dict[str, Any], final: dict[str, Any]) -> str:
    parameters = final["num_parameters"] / dense["num_parameters"]
    flops = final["flops_per_token"] / dense["flops_per_token"]
    return f"Parameters: {parameters:.1%} of dense. FLOPs per token: {flops:.1%} of dense."


def _reasons(report: dict[str, Any]) -> str:
    """What each round removed, where its scores drew the line, what it trained, and where every
    neuron's score is.
    """
    width, rows, with_neurons = report["dense"]["width"], [REASONS], []
    for record in report["rounds"]:
        kind = ROUND_KINDS[record["kind"]]
        went = ", ".join(f"layer {layer}" for layer in record.get("dropped_layers", []))
        went = went or ("nothing" if kind.size else kind.unit)
        if record["width"] < width:
            went, width = f"{width - record['width']} neurons a layer", record["width"]
            with_neurons.append(record["round"])
        margins = [_range(record.get(name)) for name in ("highest_removed", "lowest_kept")]
        rows.append(
            [
                str(record["round"]),
                went,
                *margins,
                *_trained(record),
            ]
        )
    parts = [markdown.table(rows), _about_scores(report["config"])]
    if with_neurons:
        folder = f"round-{with_neurons[0]:02d}"
        parts.append(f"""Of every neuron:

    import json
    from safetensors.torch import load_file

    layer, neuron = 0, 0  # as they were numbered before the round
    scores = load_file("{folder}/statistics.safetensors")["scores"]  # (layers, width)
    stayed = json.load(open("{folder}/plan.json"))["kept_neurons"]
    lower = int((scores[layer] < scores[layer, neuron]).sum())
    print(neuron in stayed[layer], lower, "neurons of the layer scored lower")""")
    return "\n\n".join(parts)


def _trained(record: dict[str, Any]) -> list[str]:
    """Tokens of text and optimizer steps of a round's recovery, extensions and reinforcement
    learning included.
    """
    every = [record, *record.get("extra_recovery", [])]
    steps = sum(each["recovery_steps"] + _on_problems(each).get("steps", 0) for each in every)
    return [f"{sum(each['recovery_tokens'] for each in every):,}", str(steps)]


def _on_problems(recovery: dict[str, Any]) -> dict[str, Any]:
    """What reinforcement learning wrote into the record of a recovery; empty where there was none."""
    names = [name for name, each in RECOVERIES.items() if each.on_problems]
    return next((recovery[name] for name in names if name in recovery), {})


def _about_scores(config: dict[str, Any]) -> str:
    text = (
        f"Scores are those of --scorer {config['scorer']} for neurons, and of --layer-scorer"
        f" {config['layer_scorer']} for layers,"
    )
    text += (
        " whose numbers are those before the round. The lowest go first, in each layer as many"
        " neurons; the table has the lowest"
    )
    text += " to the highest over the layers."
    if config["protect"] is not None and not SCORERS[config["scorer"]].reads_protected:
        text += " What --protect keeps stays whatever its score."
    if config["threshold"] is not None:
        text += (
            " --threshold is about scores per token: for activation and output-change these"
            " divided by the root of the tokens."
        )
    return text


def _range(values: list[float] | None) -> str:
    if not values:
        return ""
    lowest, highest = f"{min(values):.4g}", f"{max(values):.4g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _decisions(decisions: list[dict[str, Any]]) -> str:
    header = ["round", "attempt", "extension", "removed", "tokens", "measured", "limit", "decision"]
    rows = []
    for made in (quality_gate.Decision(**decision) for decision in decisions):
        removed = f"{made.step} {quality_gate.unit(made)}"
        counts = [
            str(made.round),
            str(made.attempt),
            str(made.extension),
            removed,
            f"{made.tokens:,}",
        ]
        told = (
            ["diverged", show(made.limit)]
            if made.measured is None
            else quality_gate.told_apart(made.measured, made.limit)
        )
        rows.append([*counts, *told, quality_gate.consequence(made)])
    return f"{decisions[0]['task']} {decisions[0]['metric']}:\n\n{markdown.table([header, *rows])}"


def _redundant(report: dict[str, Any]) -> str:
    widths = [report["dense"]["width"], *(record["width"] for record in report["rounds"])]
    lines = [
        redundant_line(record["round"], record["num_redundant"], before - record["width"])
        for before, record in zip(widths, report["rounds"], strict=False)
        if record.get("num_redundant") is not None
    ]
    return "\n".join(f"- {line}" for line in lines)


def _reinforcement(rounds: list[dict[str, Any]]) -> str:
    """Mean reward of the rollouts in the first and in the last fifth of the steps of each round, or
    extension, that has it.
    """
    rows, lines = (
        [
            [
                "round",
                "steps",
                "rollouts",
                "reward at first",
                "at last",
                "truncated at last",
                "response tokens at last",
            ]
        ],
        [],
    )
    trained = [
        (record["round"], *each)
        for record in rounds
        for each in enumerate([record, *record.get("extra_recovery", [])])
    ]
    for number, extension, recovery in trained:
        details = _on_problems(recovery)
        if not details:
            continue
        few = -(-details["steps"] // 5)
        means = [
            show(sum(values) / few)
            for values in (
                details["reward"][:few],
                details["reward"][-few:],
                details["truncated"][-few:],
            )
        ]
        length = f"{sum(details['response_tokens'][-few:]) / few:.0f}"
        rows.append(
            [
                f"{number}{_extension(extension)}",
                str(details["steps"]),
                str(details["rollouts"]),
                *means,
                length,
            ]
        )
        if details["always_zero"]:
            lines.append(f"- {unrewarded_line(number, details, extension)}")
    return "\n".join([markdown.table(rows), *([""] if lines else []), *lines])


def _evaluations(report: dict[str, Any]) -> str:
    columns = [
        (task, metric) for task, values in report["dense"]["eval"].items() for metric in values
    ]
    stages = [("dense", report["dense"]["eval"])]
    for record in report["rounds"]:
        stages += [
            (f"round {record['round']} pruned", record["eval_pruned"]),
            (f"round {record['round']} recovered", record["eval"]),
        ]
    header = ["", *(f"{task} {metric}" for task, metric in columns)]
    return markdown.table(
        [
            header,
            *(
                [name, *(show(values[task][metric]) for task, metric in columns)]
                for name, values in stages
            ),
        ]
    )


def _seconds(rounds: list[dict[str, Any]]) -> str:
    if not rounds:
        return "(no round yet)"
    names = list(rounds[0]["seconds"])
    rows = [
        [str(record["round"]), *(f"{record['seconds'][name]:.1f}" for name in names)]
        for record in rounds
    ]
    return markdown.table([["round", *names], *rows])
