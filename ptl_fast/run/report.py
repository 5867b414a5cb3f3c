"""Turn a run's records into report.md and one-line messages about a round."""

from typing import TYPE_CHECKING, Any

from ptl_fast.base import markdown
from ptl_fast.baselines import ROUND_KINDS, SCORERS
from ptl_fast.evaluation.chat import COSTS
from ptl_fast.run import (
    answer_costs,
    example_answers,
    quality_gate,
    rollout_report,
    summary,
    trace_report,
    verdict,
)
from ptl_fast.run.tables import leading_metric, show, table

if TYPE_CHECKING:
    from torch import Tensor

# Header of the table "What went, and why".
REASONS = [
    "round",
    "went",
    "highest score that went",
    "lowest that stayed",
    "recovery tokens",
    "steps",
]


def redundant_line(number: int, num_redundant: list[int], num_removed: int) -> str:
    """Say in one sentence how many neurons per layer were redundant and how many were removed.

    Args:
        number: the round.
        num_redundant: redundant neurons of each layer.
        num_removed: neurons removed from every layer, the same number, as widths stay equal.
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


def token_weights_line(number: int, summary: dict[str, Any]) -> str:
    """Say in one sentence how unevenly a round's probe departs, and what its weights are worth.

    Args:
        number: the round.
        summary: the round's token_weights.json: ``ptl_fast.scoring.token_weights.summary``.
    """
    return (
        f"Round {number}: without the neurons that unweighted scores remove, predictions depart by"
        f" {summary['mean_divergence']:.3g} nats a token, {summary['top_tenth']:.0%} of it at a"
        f" tenth of the tokens; the {summary['num_tokens']:,} weighted tokens average noise out"
        f" like {summary['effective_tokens']:,} equal ones."
    )


def experts_line(number: int, tokens_U: "Tensor", width: int) -> str:
    """Say in one sentence how the router spread a round's calibration tokens over the experts.

    Args:
        number: the round.
        tokens_U: how many went to each expert.
        width: an expert's neurons before the round.
    """
    tokens = tokens_U.tolist()
    few, none = sum(each < width for each in tokens), tokens.count(0)
    return (
        f"Round {number}: {min(tokens):,} to {max(tokens):,} calibration tokens went to an expert;"
        f" {few} of {len(tokens)} got fewer than their {width:,} neurons, and least squares holds"
        f" these nearer to their own weights ({none} got none)."
    )


def folded_lines(number: int, folded: list[dict[str, Any]]) -> list[str]:
    """Say in one sentence for each block of layers that went in round ``number`` what became of it.

    Args:
        folded: the round's folded_layers.json: compensate_layers.Fold of each block.
    """
    lines = []
    for block in folded:
        first, last = block["layers"][0], block["layers"][-1]
        went = f"layer {first} was" if first == last else f"layers {first} to {last} were"
        if block["reason"] is not None:
            lines.append(f"Round {number}: {went} not compensated: {block['reason']}.")
            continue
        lines.append(
            f"Round {number}: {went} folded into layer {block['into']}'s down projection, which"
            f" makes up for {block['made_up_for']:.1%} of what went (squared norm, on tokens set"
            f" aside; ridge {block['ridge']:g})."
        )
    return lines


def to_markdown(report: dict[str, Any], how_to_load: str) -> str:
    """Render report.json as markdown.

    Sections without content, such as the quality gate's in a run without one, are left out.

    Args:
        report: the content of report.json; ``final`` is empty until the run has finished.
        how_to_load: markdown that says how to load the compressed model.
    """
    dense, final = report["dense"], report["final"]
    parts = ["# Compression report", table(dense, report["rounds"])]
    if report.get("stopped"):
        parts.append(f"**{report['stopped']}**")
    parts += [f"**{line}**" for line in verdict.sentences(report["rounds"], *leading_metric(dense))]
    if final:
        parts.append("\n".join(f"- {line}" for line in summary.sentences(report)))
        parts.append(_summary(dense, final))
        parts.append(how_to_load)
    if report.get("decisions"):
        parts.append("## The quality gate\n\n" + _decisions(report["decisions"]))
    if report.get("traces"):
        parts.append("## Own traces\n\n" + trace_report.section(report["traces"]))
    parts.append("## What went, and why\n\n" + _reasons(report))
    redundant = _redundant(report)
    if redundant:
        parts.append("## Redundant neurons\n\n" + redundant)
    weighted = [
        f"- {token_weights_line(record['round'], record['token_weights'])}"
        for record in report["rounds"]
        if "token_weights" in record
    ]
    if weighted:
        parts.append("## Token weights\n\n" + "\n".join(weighted))
    folded = [
        f"- {line}"
        for record in report["rounds"]
        for line in folded_lines(record["round"], record.get("folded_layers", []))
    ]
    if folded:
        parts.append("## Compensated layers\n\n" + "\n".join(folded))
    parts += rollout_report.sections(report["rounds"])
    if dense["eval"]:
        parts.append("## Evaluation\n\n" + _evaluations(report))
    costs = answer_costs.table(_stages(report))
    if costs:
        parts.append("## What an answer costs\n\n" + costs)
    if report.get("examples"):
        parts.append("## Example answers\n\n" + example_answers.to_markdown(report["examples"]))
    if report.get("text"):
        parts.append("## Text\n\n" + report["text"])
    parts.append("## Seconds per stage\n\n" + _seconds(report["rounds"]))
    # last, as the longest: what is needed to repeat the run
    for title in ("config", "environment"):
        parts.append(
            f"## {title.capitalize()}\n\n"
            + "\n".join(f"- {name}: {value}" for name, value in report[title].items())
        )
    return "\n\n".join(parts) + "\n"


def _summary(dense: dict[str, Any], final: dict[str, Any]) -> str:
    """Parameters and FLOPs per token of the final model, as percentages of the dense one's."""
    parameters = final["num_parameters"] / dense["num_parameters"]
    flops = final["flops_per_token"] / dense["flops_per_token"]
    return f"Parameters: {parameters:.1%} of dense. FLOPs per token: {flops:.1%} of dense."


def _reasons(report: dict[str, Any]) -> str:
    """The table "What went, and why", and code that looks up any neuron's score.

    Per round: what was removed, the scores on both sides of the cut, recovery tokens and steps.
    """
    width, rows, with_neurons = report["dense"]["width"], [REASONS], []
    experts = report["dense"].get("num_experts")
    for record in report["rounds"]:
        kind = ROUND_KINDS[record["kind"]]
        went = ", ".join(f"layer {layer}" for layer in record.get("dropped_layers", []))
        # a kind of round that shrinks a size (width, layers) and did not has removed nothing; of
        # the others, such as SliceGPT's, the table names what they remove
        went = went or ("nothing" if kind.size else kind.unit)
        if record["width"] < width:
            went, width = f"{width - record['width']} neurons a layer", record["width"]
            with_neurons.append(record["round"])
        if (left := record.get("num_experts")) != experts:
            went, experts = f"{experts - left} experts a layer", left
        margins = [_range(record.get(name)) for name in ("highest_removed", "lowest_kept")]
        rows.append(
            [
                str(record["round"]),
                went,
                *margins,
                *_trained(record),
            ]
        )
    # scores are on disk only for rounds that removed neurons
    parts = [markdown.table(rows), _about_scores(report["config"], experts)]
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
    """The cells "recovery tokens" (of text) and "steps" of a round, with extensions, and the steps
    of methods on problems.
    """
    every = [record, *record.get("extra_recovery", [])]
    steps = sum(each["recovery_steps"] + rollout_report.num_steps(each) for each in every)
    return [f"{sum(each['recovery_tokens'] for each in every):,}", str(steps)]


def _about_scores(config: dict[str, Any], experts: int | None) -> str:
    """The paragraph below the table that says which scores it shows, given the run's config.

    Args:
        experts: how many a layer has at last; None: the model has none.
    """
    of_experts = f", of --expert-scorer {config['expert_scorer']} for experts" if experts else ""
    text = (
        f"Scores are those of --scorer {config['scorer']} for neurons{of_experts}, and of"
        f" --layer-scorer {config['layer_scorer']} for layers,"
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
    """Lowest to highest of the layers' values, one number if they are equal; empty without any."""
    if not values:
        return ""
    # compared as text: values that print the same are one
    lowest, highest = f"{min(values):.4g}", f"{max(values):.4g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _decisions(decisions: list[dict[str, Any]]) -> str:
    """The table of the quality gate's decisions."""
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
        # enough digits to tell the measured value from the limit
        told = (
            ["diverged", show(made.limit)]
            if made.measured is None
            else quality_gate.told_apart(made.measured, made.limit)
        )
        rows.append([*counts, *told, quality_gate.consequence(made)])
    return f"{decisions[0]['task']} {decisions[0]['metric']}:\n\n{markdown.table([header, *rows])}"


def _redundant(report: dict[str, Any]) -> str:
    """A list with ``redundant_line`` of each round that looked for redundant neurons."""
    # width before each round, to tell how many neurons it removed; one longer than the rounds
    widths = [report["dense"]["width"], *(record["width"] for record in report["rounds"])]
    lines = [
        redundant_line(record["round"], record["num_redundant"], before - record["width"])
        for before, record in zip(widths, report["rounds"], strict=False)
        if record.get("num_redundant") is not None
    ]
    return "\n".join(f"- {line}" for line in lines)


def _evaluations(report: dict[str, Any]) -> str:
    """The table of all metrics: dense model, then each round after pruning and after recovery."""
    # the dense model has been evaluated on every task, so it has all columns
    columns = [
        (task, metric)
        for task, values in report["dense"]["eval"].items()
        for metric in values
        if metric not in COSTS
    ]
    header = ["", *(f"{task} {metric}" for task, metric in columns)]
    rows = [
        [name, *(show(values[task][metric]) for task, metric in columns)]
        for name, values in _stages(report)
    ]
    return markdown.table([header, *rows])


def _stages(report: dict[str, Any]) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Each model that was evaluated and {task: {metric: value}}: the dense one, then each round's
    after pruning and after recovery.
    """
    stages = [("dense", report["dense"]["eval"])]
    for record in report["rounds"]:
        stages += [
            (f"round {record['round']} pruned", record["eval_pruned"]),
            (f"round {record['round']} recovered", record["eval"]),
        ]
    return stages


def _seconds(rounds: list[dict[str, Any]]) -> str:
    """The table of wall-clock seconds per stage of each round."""
    if not rounds:
        return "(no round yet)"
    names = list(rounds[0]["seconds"])
    rows = [
        [str(record["round"]), *(f"{record['seconds'][name]:.1f}" for name in names)]
        for record in rounds
    ]
    return markdown.table([["round", *names], *rows])
