"""What is left of a model whose layers go, with and without compensation, before any training?

    python -m benchmarks.methods.dropped_layers --model DIR --data gsm8k/train.jsonl --json FILE

Layers go at once, by each layer scorer, and the model is judged as it then is: by the negative
log-likelihood (NLL) per token of held-out answers, and with --problems by how many problems it
answers rightly. Compensated means that what the layers did was folded into the down projections
before them (ptl_fast.pruning.compensate_layers).

Calibration reads the first rows of --data, and what the model is judged by are later rows of the
same file, which calibration does not reach. The file of results holds a part for each model, and a
row of it is written as soon as it is measured: the same command goes on where it was interrupted.
"""

import argparse
import copy
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness.environment import environment
from benchmarks.harness.markdown import MISSING, Table, to_markdown
from benchmarks.harness.results import errors_in_one_line, write_json
from ptl_fast.config.model import ModelSettings
from ptl_fast.data import answers, packing, readers, sampling
from ptl_fast.data.generation import Sampling, answer_all
from ptl_fast.evaluation.nll import answer_nll
from ptl_fast.model import loading
from ptl_fast.model.families import Family, down_projections, find_family
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.compensate_layers import Fold, blocks_of, ends, fold_
from ptl_fast.pruning.plan import PruningPlan, plan_layers
from ptl_fast.pruning.schedule import Round
from ptl_fast.scoring import dropped_blocks, statistics
from ptl_fast.scoring.scorers import LAYER_SCORERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ptl_fast.data.documents import Document

LENGTH = 512  # tokens of a packed sequence, and of a held-out document
COLUMNS = ["layers dropped", "which", "", "NLL", "right answers", "made up for"]


class Judges(NamedTuple):
    """What a model is judged by."""

    tokenizer: "PreTrainedTokenizerBase"
    held_out: "Sequence[Document]"
    problems: "Sequence[Document]"
    new_tokens: int
    batch: int

    def judge(self, model: "PreTrainedModel") -> dict[str, Any]:
        """The numbers of a row: the NLL, and with problems how many were answered rightly."""
        found = {**answer_nll(model, self.tokenizer, self.held_out, 8, LENGTH)}
        if not self.problems:
            return found
        replies = answer(model, self.tokenizer, self.problems, self.new_tokens, self.batch)
        right = [
            answers.is_right(gold(problem), reply)
            for problem, reply in zip(self.problems, replies, strict=True)
        ]
        return {**found, "right": sum(right), "problems": len(right)}


def gold(problem: "Document") -> str:
    """The number behind the last mark of a GSM8K solution."""
    return problem.answer.split("####")[-1].strip().replace(",", "")


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Document]",
    new_tokens: int,
    batch: int,
) -> list[str]:
    """The model's greedy answers in its chat template, of at most ``new_tokens`` tokens."""
    prompts: list[list[int]] = [
        tokenizer.apply_chat_template(  # type: ignore[misc]
            [{"role": "user", "content": f"{problem.question}\n{answers.BOXED_REQUEST}"}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in problems
    ]
    drawn = Sampling(max_new_tokens=new_tokens)
    replies, _ = answer_all(model, tokenizer, prompts, drawn, batch, "answers")
    return tokenizer.batch_decode([reply.tokens for reply in replies], skip_special_tokens=True)


def make_plans(
    statistics_: statistics.Statistics, width: int, scorers: Sequence[str], counts: Sequence[int]
) -> dict[tuple[int, str], PruningPlan]:
    """By number of layers and layer scorer: what goes."""
    plans = {}
    for count in counts:
        for name in scorers:
            scores_L = LAYER_SCORERS[name].compute(statistics_)
            step = Round(
                number=1,
                kind="layers",
                width=width,
                num_layers=len(scores_L) - count,
                recovery_share=0.0,
            )
            plans[count, name] = plan_layers(step, scores_L, name)
    return plans


def foldable(plan: PruningPlan) -> list[list[int]]:
    """The plan's blocks of layers that have a layer before them."""
    return [block for block in blocks_of(plan.dropped_layers) if block[0]]


def without_layers(
    model: "PreTrainedModel",
    family: Family,
    plan: PruningPlan,
    fits: dict[tuple[int, int], dropped_blocks.BlockFit],
) -> tuple["PreTrainedModel", list[Fold]]:
    """A copy without the plan's layers, and how they were folded: the blocks with a fit, by their
    ends.
    """
    smaller = copy.deepcopy(model)
    folds = [
        Fold(layers=block, **fits[ends(block)]._asdict())
        for block in foldable(plan)
        if ends(block) in fits
    ]
    fold_(down_projections(smaller, family), folds)
    compact_(smaller, family, plan)
    return smaller, folds


def rows(
    model: "PreTrainedModel",
    calibration: packing.PackedTokens,
    judges: Judges,
    scorers: Sequence[str],
    counts: Sequence[int],
    known: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Measure every row that is not ``known``: the dense model's, and two for each plan."""
    family, width = find_family(model), model.config.intermediate_size
    done = {(row["dropped"], row["scorer"], row["compensated"]) for row in known}
    if (0, None, False) not in done:
        yield {"dropped": 0, "scorer": None, "compensated": False, **judges.judge(model)}
    todo = [
        (count, name, compensated)
        for count in counts
        for name in scorers
        for compensated in (False, True)
        if (count, name, compensated) not in done
    ]
    if not todo:
        return
    taken = statistics.collect(model, family, calibration, 4)
    plans = make_plans(taken, width, scorers, counts)
    # one pass for all plans: they have blocks in common
    blocks = sorted({ends(block) for plan in plans.values() for block in foldable(plan)})
    found = dropped_blocks.block_fits(model, family, calibration, 4, blocks)
    fits = dict(zip(blocks, found, strict=True))
    for count, name, compensated in todo:
        plan = plans[count, name]
        smaller, folds = without_layers(model, family, plan, fits if compensated else {})
        yield {
            "dropped": count,
            "scorer": name,
            "compensated": compensated,
            "layers": plan.dropped_layers,
            "folded": [fold.to_json() for fold in folds],
            **judges.judge(smaller),
        }


def table(found: Sequence[dict[str, Any]]) -> Table:
    """The rows for people."""
    lines = [COLUMNS]
    for row in found:
        which = ", ".join(map(str, row.get("layers", [])))
        right = f"{row['right']} of {row['problems']}" if "right" in row else MISSING
        shares = ", ".join(f"{fold['made_up_for']:.0%}" for fold in row.get("folded", []))
        lines.append(
            [
                f"{row['dropped']}, {row['scorer']}" if row["scorer"] else "none",
                which,
                "compensated" if row["compensated"] else "",
                f"{row['nll']:.3f}",
                right,
                shares,
            ]
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=loading.DEMO, help="folder or hub name")
    parser.add_argument("--data", default=loading.DEMO, help="file of questions and answers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--dropped", type=int, nargs="+", default=[2, 4, 6], metavar="LAYERS")
    parser.add_argument("--scorers", nargs="+", default=["residual", "block-influence"])
    parser.add_argument(
        "--held-out", type=int, nargs=2, default=[6000, 6048], metavar=("FIRST", "END")
    )
    parser.add_argument("--problems", type=int, nargs=2, default=[0, 0], metavar=("FIRST", "END"))
    parser.add_argument("--new-tokens", type=int, default=320, help="of an answer")
    parser.add_argument("--batch", type=int, default=48, help="problems answered together")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        documents = list(readers.load_documents(options.data))
        model = loading.load_model(options.model, ModelSettings(dtype=options.dtype), "cpu")
    tokenizer = loading.load_tokenizer(options.model)
    calibration, num_read = calibration_tokens(documents, tokenizer, options.tokens)
    held_out, problems = documents[slice(*options.held_out)], documents[slice(*options.problems)]
    starts = [each[0] for each in (options.held_out, options.problems) if each[0] < each[1]]
    if num_read > min(starts, default=0) or not held_out:
        parser.error(
            f"calibration reads the first {num_read} rows of {len(documents)}: --held-out and"
            " --problems must be rows behind them"
        )
    judges = Judges(tokenizer, held_out, problems, options.new_tokens, options.batch)
    results = json.loads(options.json.read_text()) if options.json.exists() else {"models": {}}
    setup = {
        name: getattr(options, name)
        for name in ("dtype", "held_out", "problems", "new_tokens", "batch")
    }
    setup = {**setup, "tokens": calibration.num_tokens, "rows_read": num_read}
    name = Path(options.model).name
    part = results["models"].setdefault(name, {"setup": setup, "rows": []})
    if part["setup"] != setup:
        parser.error(f"{options.json} holds other measurements of {name}; give another file")
    part["environment"] = environment("cpu")
    measure = functools.partial(rows, scorers=options.scorers, counts=options.dropped)
    for row in measure(model, calibration, judges, known=list(part["rows"])):
        part["rows"].append(row)
        write_json(options.json, results)
        print(to_markdown(table(part["rows"])), flush=True)


def calibration_tokens(
    documents: "Sequence[Document]", tokenizer: "PreTrainedTokenizerBase", num_tokens: int
) -> tuple[packing.PackedTokens, int]:
    """The first documents that hold so many tokens, packed, and how many documents they are."""
    ids: list[Sequence[int]] = []
    left = num_tokens
    for document in sampling.tokenize(documents, tokenizer):
        if left <= 0:
            break
        ids.append(document)
        left -= len(document)
    return packing.pack(ids, LENGTH, packing.padding_token(tokenizer)), len(ids)


if __name__ == "__main__":
    main()
