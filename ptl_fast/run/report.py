"""Records -> the table after each round, report.json, report.md and the model card."""

from typing import Any

from ptl_fast.run import quality_gate

REASONS = [
    "round",
    "went",
    "highest score that went",
    "lowest that stayed",
    "recovery tokens",
    "steps",
]
COLUMNS = [
    "round",
    "width",
    "layers",
    "parameters",
    "FLOPs/token",
    "pruned",
    "recovered",
    "seconds",
]


def table(dense: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    """The run so far as a markdown table; the last columns but one show the first evaluation task
    before and after recovery.
    """
    task, metric = leading_metric(dense)
    header = [
        name if name not in ("pruned", "recovered") else f"{metric} {name}" for name in COLUMNS
    ]
    rows = [_row("dense", dense, "", _show(dense["eval"][task][metric]), "")]
    for record in rounds:
        name = (
            f"{record['round']} {record['kind']}"
            if record["kind"] != "none"
            else f"{record['round']} training only"
        )
        pruned = _show(record["eval_pruned"][task][metric])
        seconds = f"{sum(record['seconds'].values()):.0f}"
        rows.append(_row(name, record, pruned, _show(record["eval"][task][metric]), seconds))
    return _markdown([header, *rows])


def leading_metric(size: dict[str, Any]) -> tuple[str, str]:
    """(task, metric) that leads the tables: the first metric of the first evaluation task."""
    task = next(iter(size["eval"]))
    return task, next(iter(size["eval"][task]))


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
        parts.append("## The guard\n\n" + _decisions(report["decisions"]))
    parts.append("## What went, and why\n\n" + _reasons(report))
    redundant = _redundant(report)
    if redundant:
        parts.append("## Redundant neurons\n\n" + redundant)
    if any("grpo" in record for record in report["rounds"]):
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


def schedule_table(rows: list[dict[str, Any]]) -> str:
    """The dry run: what dense is and each round leaves, FLOPs of each benchmark's prompt, memory of
    one GPU, tokens and hours.
    """
    benchmarks = [f"{name} ({num_tokens})" for name, num_tokens in rows[0]["prompt_tokens"].items()]
    header = [*COLUMNS[:5], *benchmarks, "serve GiB", "train GiB", "recovery tokens", "hours"]
    lines = []
    for row in rows:
        memory = [f"{row[name] / 2**30:.1f}" for name in ("serving_bytes", "training_bytes")]
        if row is rows[0]:
            recovery = ["", ""]
        elif row["recovery_tokens"] is None:
            recovery = ["its part of the data", "?"]
        else:
            recovery = [f"{row['recovery_tokens']:,}", f"{row['recovery_hours']:.1f}"]
        lines.append(
            [
                *_size(row["name"], row),
                *map(_short, row["prompt_flops"].values()),
                *memory,
                *recovery,
            ]
        )
    return _markdown([header, *lines])


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
        went = (
            ", ".join(f"layer {layer}" for layer in record.get("dropped_layers", [])) or "nothing"
        )
        if record["width"] < width:
            went, width = f"{width - record['width']} neurons a layer", record["width"]
            with_neurons.append(record["round"])
        margins = [_range(record.get(name)) for name in ("highest_removed", "lowest_kept")]
        rows.append(
            [
                str(record["round"]),
                went if record["kind"] != "hidden" else "directions",
                *margins,
                *_trained(record),
            ]
        )
    parts = [_markdown(rows), _about_scores(report["config"])]
    if with_neurons:
        folder = f"round-{with_neurons[0]:02d}"
        parts.append(f"""Of every neuron:

    import json
    from safetensors.torch import load_file

    layer, neuron = 0, 0  # as they were numbered before the round
    scores = load_file("{folder}/statistics.safetensors")["scores"]  # (layers, width)
    stayed = json.load(open("{folder}/plan.json"))["kept_neurons"]
    print(neuron in stayed[layer], int((scores[layer] < scores[layer, neuron]).sum()), "neurons of the layer scored lower")""")
    return "\n\n".join(parts)


def _trained(record: dict[str, Any]) -> list[str]:
    """Tokens of text and optimizer steps of a round's recovery, extensions and reinforcement
    learning included.
    """
    every = [record, *record.get("extra_recovery", [])]
    steps = sum(each["recovery_steps"] + (each.get("grpo") or {}).get("steps", 0) for each in every)
    return [f"{sum(each['recovery_tokens'] for each in every):,}", str(steps)]


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
    if config["protect"] is not None and config["scorer"] not in ("reconstruction", "reference"):
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
        removed = f"{made.step} {quality_gate.UNITS.get(made.kind, made.kind)}"
        counts = [
            str(made.round),
            str(made.attempt),
            str(made.extension),
            removed,
            f"{made.tokens:,}",
        ]
        told = (
            ["diverged", _show(made.limit)]
            if made.measured is None
            else quality_gate.told_apart(made.measured, made.limit)
        )
        rows.append([*counts, *told, quality_gate.consequence(made)])
    return f"{decisions[0]['task']} {decisions[0]['metric']}:\n\n{_markdown([header, *rows])}"


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
        details = recovery.get("grpo")
        if details is None:
            continue
        few = -(-details["steps"] // 5)
        means = [
            _show(sum(values) / few)
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
    return "\n".join([_markdown(rows), *([""] if lines else []), *lines])


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
    return _markdown(
        [
            header,
            *(
                [name, *(_show(values[task][metric]) for task, metric in columns)]
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
    return _markdown([["round", *names], *rows])


def _row(name: str, size: dict[str, Any], pruned: str, recovered: str, seconds: str) -> list[str]:
    return [*_size(name, size), pruned, recovered, seconds]


def _size(name: str, size: dict[str, Any]) -> list[str]:
    return [
        name,
        str(size["width"]),
        str(size["num_layers"]),
        _short(size["num_parameters"]),
        _short(size["flops_per_token"]),
    ]


def _show(value: float) -> str:
    return f"{value:.4f}"


def _short(count: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            return f"{count:.4g}{unit}"
        count /= 1000
    raise AssertionError


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def environment(device: str) -> dict[str, str]:
    """The machine and the versions, for report.json."""
    import importlib.metadata
    import platform

    import torch

    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine()
    )
    packages = (
        "ptl_fast",
        "torch",
        "triton",
        "transformers",
        "trl",
        "datasets",
        "deepspeed",
        "lm_eval",
        "math_verify",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions,
    }
