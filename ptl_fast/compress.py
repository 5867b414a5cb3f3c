"""The command line and the loop: ``python -m ptl_fast.compress``, or ``from ptl_fast import compress``.

The only file that knows the order of the stages. Each stage's result is written to the run's folder before the next begins, so the
same command continues a run that was killed. Heavy libraries are imported when work begins, so that --help answers at once.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast import guard
from ptl_fast.config import NOT_ON_TEXT, Config, deepspeed_file
from ptl_fast.course import DECISIONS, Course
from ptl_fast.flags import make_config, parse, shipped_config
from ptl_fast.guard import suffix

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.budget import HeldOut, Spending
    from ptl_fast.calibrate import Extra, Statistics
    from ptl_fast.data import Document, PackedTokens
    from ptl_fast.families import Family
    from ptl_fast.lesson import Lesson, Watch
    from ptl_fast.moments import Moments
    from ptl_fast.plan import PruningPlan, Round
    from ptl_fast.reconstruct import GramMatrices
    from ptl_fast.rundir import RunFolder
    from ptl_fast.sources import Form

T = TypeVar("T")

STAGES = ("calibrate", "compact", "recover", "evaluate")
NUM_HELD_OUT, NUM_CHECKED = 256, 64  # documents for evaluation, and for --recovery-split until-recovered
NLL_MAX_LENGTH = 2048
WIDTH_MULTIPLE = "width_multiple.json"
HOW_TO_LOAD = """Load the result:

{imports}    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{final}")
    tokenizer = AutoTokenizer.from_pretrained("{final}")"""


def compress(**settings: Any) -> dict[str, Any]:
    """Compress a model and return the content of report.json. Settings are the fields of ``ptl_fast.config.Config``.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    return run(make_config(settings))


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """num_parameters, num_layers, width and flops_per_token of the original and of what each round leaves, from the config alone.

    Raises:
        ValueError: as ``compress`` does for a setting or model that does not fit; the data is not read.
    """
    config = make_config(settings)
    config.check()
    job = _Job(config)
    return [job._size(), *(job._size(step) for step in job.schedule)]


def run(config: Config) -> dict[str, Any]:
    """Run, or continue, a compression."""
    config.check()
    if config.dry_run:
        if os.environ.get("RANK", "0") == "0":
            print(dry_run(config))
        return {}
    if config.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    job = _Job(config)
    _mention_missing_kernels(job.device)
    if config.allow_code_execution:
        _mention_missing_protections()
    return job.run()


def dry_run(config: Config) -> str:
    """What each round would do, as a table, from the model's config alone: no weights, no data, and for a preset no network.

    Raises:
        ValueError: the schedule does not fit the model, or the estimate does not know a setting.
    """
    from ptl_fast import estimate, flops, report

    assert config.model is not None
    dense: Any = shipped_config(config.model) or _load_config(config)
    if config.slice_hidden is not None and isinstance(dense, types.SimpleNamespace):  # slicing needs transformers' own class
        from transformers import AutoConfig

        dense = AutoConfig.for_model(**vars(dense))
    if config.width_multiple == "auto":
        from ptl_fast import alignment

        config = dataclasses.replace(config, width_multiple=alignment.TENSOR_CORE_MULTIPLE)
    schedule = _schedule(config, dense)
    rows = [{"name": "dense", **estimate.predict(dense, config, 0)}]
    for step in schedule:
        num_tokens = None if config.recovery_tokens is None else round(step.recovery_share * config.recovery_tokens)
        smaller = flops.resized(dense, step.width, step.num_layers, step.hidden_size)
        names = config.final_recoveries if step.kind == "final" else config.recoveries
        rows.append({"name": f"{step.number} {step.kind}", **estimate.predict(smaller, config, num_tokens, names, dense)})
    floor = "These widths are the lowest that --threshold may reach: a round's scores decide how many neurons go.\n\n"
    return f"{report.schedule_table(rows)}\n\n{floor if config.threshold is not None else ''}{estimate.assumptions(config, rows)}"


def _load_config(config: Config) -> Any:
    from ptl_fast import models

    if not config.debug:
        quiet_libraries()
    assert config.model is not None
    return models.load_config(config.model)


def _mention_missing_kernels(device: str) -> None:
    from ptl_kernels import cpu

    if device == "cpu" and not cpu.available():
        _say("Scoring runs on plain PyTorch: the C++ kernels were not built; with a C++ compiler, install again to have them.")


def _mention_missing_protections() -> None:
    from ptl_fast import sandbox

    missing = sandbox.missing_protections()
    if missing:
        _say(f"Generated code runs with limits on time and memory, but without {', '.join(missing)}: see ptl_fast/sandbox.py.")


class _Job:
    """One run: what its stages share. Constructing it checks the settings and writes nothing."""

    model: "PreTrainedModel"
    family: "Family"
    moments: "Moments | None" = None
    grams: "GramMatrices | None" = None
    """Of the model as it is now, from its scores to its compensation."""
    chosen: dict[str, Any] | None = None
    """What --width-multiple auto came to."""

    def __init__(self, config: Config) -> None:
        from ptl_fast import evaluate, models, ranks, training

        assert config.model is not None
        assert config.data is not None
        _check_names(config)
        self.config, self.identity = config, config.identity()
        self.device = models.resolve_device(config.device)
        if config.liger:
            training.check_liger(self.device)
        self.hf_config = models.load_config(config.model)
        self.output = Path(config.output or f"runs/{Path(config.model).name}")
        if config.width_multiple == "auto":
            self._choose_width_multiple()
        self.course = Course(self.config, self.hf_config, _schedule(self.config, self.hf_config))
        self.tasks = evaluate.parse_tasks(config.eval_tasks, config.allow_code_execution)
        self.gate_on = guard.parse_gate(config.gate, [task.label for task in self.tasks]) if config.gate else None
        ranks.join(self.device)
        training.batch_split(config)
        if config.uses_grpo:
            training.rollout_split(config)

    def _choose_width_multiple(self) -> None:
        """Decide what auto is, or take what the run decided before: a second measurement might say something else."""
        import torch

        from ptl_fast import alignment, ranks

        ranks.join(self.device)
        kept, self.chosen = self.output / WIDTH_MULTIPLE, None
        if kept.is_file() and not self.config.overwrite:
            self.chosen = json.loads(kept.read_text())
        if ranks.is_main() and self.chosen is None:
            dtype = getattr(torch, "float32" if self.config.dtype == "auto" else self.config.dtype)
            self.chosen = alignment.choose(self.device, self.hf_config.hidden_size, self.hf_config.intermediate_size, dtype)
        self.chosen = ranks.agree(self.chosen)
        assert self.chosen is not None
        self.config = dataclasses.replace(self.config, width_multiple=self.chosen["multiple"])
        _say(f"--width-multiple auto is {self.chosen['multiple']}: {self.chosen['reason']}")

    @property
    def schedule(self) -> "list[Round]":
        """The rounds, as they stand now: the guard may change them."""
        return self.course.schedule

    @property
    def training(self) -> "list[PackedTokens]":
        """Each round's part of the data."""
        return self.course.training

    def run(self) -> dict[str, Any]:
        """The loop. Inputs are checked first; nothing is written before they fit."""
        from ptl_fast import ranks, report

        self._load_data()
        self.folder = self._checked_folder()
        num_finished = 0 if self.config.overwrite else self.folder.num_finished_rounds()
        if not self.config.overwrite:
            self.course.take(ranks.agree(self.folder.read_json(DECISIONS)) or [])
        if num_finished < len(self.schedule):
            self._load_weights(num_finished)
        self.folder.open(self.config.overwrite)
        if self.chosen is not None:
            self.folder.write_json(WIDTH_MULTIPLE, self.chosen)
        self._put_aside_failed_rounds()
        self._remove_old_weights(num_finished)
        if num_finished:
            _say(f"{self.output}: continuing after round {num_finished} of {len(self.schedule)}")
        self.dense = self.folder.once("dense.json", self._measure_dense)
        self.records = [self.folder.read_json(f"round-{number:02d}/record.json") for number in range(1, num_finished + 1)]
        while len(self.records) < len(self.schedule):
            self._round(self.schedule[len(self.records)])
            self._write_report()
            _say("\n" + report.table(self.dense, self.records) + "\n")
        return self._finish()

    def _round(self, step: "Round") -> None:
        """Prune and recover once. If the guard undoes it, the model before is there again, and the schedule is another one."""
        from ptl_fast import ranks

        name, already_passed = f"round-{step.number:02d}", guard.has_passed(self.course.decisions, step.number)
        decision = None if already_passed else self._attempt(step)
        if decision is not None and decision.action != "pass":
            self._put_aside_failed_rounds()
            if self.schedule[len(self.records) :]:
                self._load_weights(len(self.records))
            return
        self.folder.keep_extension(step.number, len(guard.extensions(self.course.decisions, step.number)))
        if already_passed:
            self._load_weights(step.number)
        self.folder.write_json(f"{name}/record.json", ranks.agree(self._record(name)))
        self._remove_old_weights(step.number)
        self.records.append(self.folder.read_json(f"{name}/record.json"))

    def _attempt(self, step: "Round") -> "guard.Decision | None":
        """Plan, prune and recover, and go on recovering as the guard decides. What is on disk is not computed again."""
        from ptl_fast import report
        from ptl_fast.plan import PruningPlan

        name, stage = f"round-{step.number:02d}", functools.partial(self._stage, step.number)
        plan = PruningPlan(**self.folder.once(f"{name}/plan.json", lambda: stage("calibrate", lambda: self._plan(step))))
        share = 0.0 if plan.removes_nothing else step.recovery_share
        step = dataclasses.replace(step, width=plan.width, recovery_share=share)
        if plan.num_redundant is not None:
            width = (self.records[-1] if self.records else self.dense)["width"]
            _say(report.redundant_line(step.number, plan.num_redundant, width - plan.width))

        def evaluate() -> dict[str, dict[str, float]]:
            return stage("evaluate", lambda: self._evaluate(f"round {step.number} recovered"))

        while True:
            extension = len(guard.extensions(self.course.decisions, step.number))
            self._train(step, plan, extension)
            decision = self._judge(step, self.folder.once(f"{name}/recovered{suffix(extension)}.json", evaluate))
            if decision is None or decision.action != "extend":
                return decision

    def _train(self, step: "Round", plan: "PruningPlan", extension: int) -> None:
        """Leave in memory and on disk the model after the round's recovery, or after an extension of it."""
        from ptl_fast import ranks

        name, stage = f"round-{step.number:02d}", functools.partial(self._stage, step.number)
        saved = f"{name}/model{suffix(extension)}"
        if ranks.agree((self.output / saved).is_dir()):
            self._load_weights(step.number, extension)
            return
        if extension:
            self._load_weights(step.number, extension - 1)
        else:
            stage("compact", lambda: self._compact(plan))
            label = f"round {step.number} pruned"
            before = self.records[-1]["eval"] if step.kind == "final" else None  # nothing goes
            self.folder.once(f"{name}/pruned.json", lambda: before or stage("evaluate", lambda: self._evaluate(label)))
        stage("recover", lambda: self._recover(step, extension))
        self.folder.save_model(saved, self.model, self.tokenizer)
        if extension:
            self.folder.remove(self.output / f"{name}/model{suffix(extension - 1)}")

    def _stage(self, number: int, label: str, compute: Callable[[], T]) -> T:
        """Run a stage of a round from a seed of its own, and add its seconds to those on disk."""
        from ptl_fast import models

        models.seed_everything(self.config.seed * 1000 + number)
        start = time.perf_counter()
        value = compute()
        name = f"round-{number:02d}/seconds.json"
        seconds = self.folder.read_json(name) or dict.fromkeys(STAGES, 0.0)
        seconds[label] += time.perf_counter() - start
        self.folder.write_json(name, seconds)
        return value

    def _record(self, name: str) -> dict[str, Any]:
        """What the files of a round's folder say, as one."""
        from ptl_fast.plan import PruningPlan

        plan = PruningPlan(**self.folder.read_json(f"{name}/plan.json"))
        num_extensions = len(list((self.output / name).glob("recovery-extra-*.json")))
        extra = [self.folder.read_json(f"{name}/recovery{suffix(number + 1)}.json") for number in range(num_extensions)]
        return {
            **self._size(plan),
            "eval": self.folder.read_json(f"{name}/recovered{suffix(num_extensions)}.json"),
            "round": plan.round,
            "kind": plan.kind,
            "seconds": self.folder.read_json(f"{name}/seconds.json"),
            "eval_pruned": self.folder.read_json(f"{name}/pruned.json"),
            **self.folder.read_json(f"{name}/recovery.json"),
            **({"extra_recovery": extra} if extra else {}),
            "num_redundant": plan.num_redundant,
        }

    def _gate(self) -> "guard.Gate | None":
        """What rounds must reach, once the original has been measured."""
        if self.gate_on is None:
            return None
        assert self.config.max_drop is not None
        task, metric = self.gate_on
        measured = self.dense["eval"][task]
        guard.check_metric(task, metric, list(measured))
        return guard.Gate(
            task=task,
            metric=metric,
            higher_is_better=self.higher_is_better,
            max_drop=self.config.max_drop,
            dense=measured[metric],
        )

    def _is_judged(self, step: "Round") -> bool:
        """Whether the gate holds for this round: not for --final-recovery, which has no pruning to be undone."""
        return self.gate_on is not None and step.kind != "final"

    def _judge(self, step: "Round", recovered: dict[str, Any]) -> "guard.Decision | None":
        """With a gate, decide what follows from the evaluation of a round, and write it down before it does."""
        gate = self._gate() if self._is_judged(step) else None
        if gate is None:
            return None
        name, num_extensions = f"round-{step.number:02d}", len(guard.extensions(self.course.decisions, step.number))
        trained = [self.folder.read_json(f"{name}/recovery{suffix(number)}.json") for number in range(num_extensions + 1)]
        tokens = [each["recovery_tokens"] for each in trained]
        decision = self.course.judge(gate, step, float(recovered[gate.task][gate.metric]), tokens)
        self.folder.write_json(DECISIONS, self.course.decisions_as_json())
        _say(guard.sentence(decision))
        return decision

    def _put_aside_failed_rounds(self) -> None:
        """Rename the folders of attempts that the guard has undone; they keep plan and record. What is done is not done again."""
        for decision in self.course.decisions:
            if decision.action in ("back-off", "stop"):
                failed = self.folder.put_aside(decision.round, decision.attempt)
                self.folder.once(f"{failed}/record.json", functools.partial(self._record, failed))

    def _measure_dense(self) -> dict[str, Any]:
        """The original's size and evaluation, and its NLL of the text by which rounds know that they have recovered."""
        dense = {**self._size(), "eval": self._evaluate("dense")}
        return {**dense, "checked_nll": self._checked_nll()} if self.checked_documents else dense

    def _compact(self, plan: "PruningPlan") -> None:
        """Make the model smaller as the plan says, and with --keep-optimizer-state the moments that the round before left."""
        from ptl_fast import compact, moments, ranks, reconstruct, slicegpt

        self.moments = None
        if plan.kind == "final":
            return
        tokens = self._calibration(plan.round)
        if plan.hidden_size is not None:
            self.model, eigenvalues = slicegpt.rotate_and_slice(self.model, tokens, plan.hidden_size, self.config.micro_batch)
            self.folder.write_tensors(f"round-{plan.round:02d}/statistics.safetensors", {"eigenvalues": eigenvalues})
            return
        kept = _optimizer_file(plan.round - 1)
        if ranks.agree((self.output / kept).is_file()):  # not before a round has trained
            self.moments = moments.from_tensors(self.folder.read_tensors(kept))
        if self.config.compensate and plan.kept_neurons is not None:
            if self.grams is None:  # scored in another process, another round, or the middle of a recovery
                _, self.grams = self._collect(plan.kind, tokens, "compensate")
            assert self.grams is not None
            reconstruct.compensate_(self.grams, plan.kept_neurons)
        self.grams = None
        compact.compact_(self.model, self.family, plan, self.moments)

    def _recover(self, step: "Round", extension: int = 0) -> None:
        """Train in place; what later rounds need of it goes to the round's folder."""
        from ptl_kernels import fused_ffns

        from ptl_fast import calibrate, families, moments, recover, report

        trains = step.recovery_share > 0  # not where --threshold found nothing to remove
        names, config = (self.config.final_recoveries if step.kind == "final" else self.config.recoveries), self.config
        if extension:
            names, config = self._extended_recoveries(step.number, extension)
        with contextlib.ExitStack() as stack:
            watch, rest = None, self._rest(step)
            if self.config.score_during_recovery and trains and rest:
                watch = stack.enter_context(calibrate.watch(self.model, self.family, self._extra(rest[0].kind)))
            elif self.config.fused_ffn or self.config.score_during_recovery:
                stack.enter_context(fused_ffns(families.feed_forwards(self.model, self.family)))
            spent = recover.recover(names if trains else ["none"], self.model, self._lesson(step, extension, watch), config)
        if watch is not None and spent.num_steps:
            self.folder.write_tensors(_next_statistics(step.number, extension), watch.total().tensors())
        if spent.moments is not None:
            self.folder.write_tensors(_optimizer_file(step.number, extension), moments.to_tensors(spent.moments))
        if "grpo" in spent.details and spent.details["grpo"]["always_zero"]:
            _say(report.unrewarded_line(step.number, spent.details["grpo"], extension))
        took = {"recovery_tokens": spent.num_tokens, "recovery_steps": spent.num_steps, "checks": spent.checks, **spent.details}
        self.folder.write_json(f"round-{step.number:02d}/recovery{suffix(extension)}.json", took)

    def _lesson(self, step: "Round", extension: int, watch: "Watch | None") -> "Lesson":
        """The data that this round recovers with, and how it is to be spent."""
        from ptl_fast.lesson import Lesson

        folder, name = self.folder.round(step.number), f"round-{step.number:02d}{suffix(extension)}"
        lesson = Lesson(
            tokens=self._sequences(step),
            num_tokens=self._tokens_left()[0],
            name=name,
            folder=folder / f"recovery{suffix(extension)}",
            log_folder=self.output / "log" / name,
            tokenizer=self.tokenizer,
            problems=self.course.corpus.documents[step.number - 1],
            watch=watch,
            spending=self._spending(step),
        )
        return self._extended(lesson, step.number, extension) if extension else lesson

    def _extended_recoveries(self, number: int, extension: int) -> tuple[list[str], Config]:
        """Which recoveries an extension has, and its settings: the data comes in another order, and fewer times."""
        own, names = self.folder.read_json(f"round-{number:02d}/recovery.json"), self.config.recoveries
        config = dataclasses.replace(self.config, seed=self.config.seed + extension)
        if "grpo" in own:
            share = guard.extensions(self.course.decisions, number)[-1].next_share
            assert share is not None
            config = dataclasses.replace(config, grpo_steps=max(1, round(share * own["grpo"]["steps"])))
        if not own["recovery_steps"]:  # until-recovered: text had no work to do
            names = [name for name in names if name in NOT_ON_TEXT]
        return names, config

    def _extended(self, lesson: "Lesson", number: int, extension: int) -> "Lesson":
        """The lesson of an extension of recovery: what the round has trained on once more, for the tokens that the guard allows."""
        from ptl_fast import cpt, moments

        tokens, state = lesson.tokens, None
        if self.config.recovery_split == "until-recovered":  # what it did not come to is for later rounds
            steps = self.folder.read_json(f"round-{number:02d}/recovery.json")["recovery_steps"]
            tokens = cpt.first_part(tokens, steps, self.config)
        if self.config.keep_optimizer_state:
            state = moments.from_tensors(self.folder.read_tensors(_optimizer_file(number, extension - 1)))
        spending = dataclasses.replace(lesson.spending, position=None, held_out=None, moments=state)
        allowed = guard.extensions(self.course.decisions, number)[-1].next_tokens
        assert allowed is not None
        return dataclasses.replace(lesson, tokens=tokens, num_tokens=allowed, spending=spending)

    def _spending(self, step: "Round") -> "Spending":
        """How the settings want this round's tokens spent."""
        from ptl_fast import budget, cpt

        config, rest = self.config, self._rest(step)
        position = None
        if config.lr_schedule == "run" and step.kind != "final":
            later = zip(self.training[step.number :], self._tokens_left()[1 : 1 + len(rest)], strict=False)  # without the final one
            before = sum(record["recovery_steps"] for record in self.records)
            position = before, sum(cpt.num_steps(tokens, num_tokens, config) for tokens, num_tokens in later)
        anticipates = config.anticipate > 0 and bool(rest) and rest[0].kind == "neurons"
        return budget.Spending(
            position=position,
            held_out=self._held_out() if rest and self.checked_documents else None,
            anticipate=functools.partial(self._anticipate, rest[0]) if anticipates else None,
            moments=self.moments,
            keep_moments=config.keep_optimizer_state and (bool(rest) or self._is_judged(step)),  # for an extension
        )

    def _rest(self, step: "Round") -> "list[Round]":
        """The rounds after this one that remove something."""
        return [each for each in self.schedule[step.number :] if each.kind != "final"]

    def _anticipate(self, following: "Round") -> "Callable[[], Tensor] | None":
        """Decide now what the next round will remove, and return the penalty on it."""
        from ptl_fast import anticipate
        from ptl_fast.plan import PruningPlan

        plan = PruningPlan(**self.folder.once(f"round-{following.number:02d}/plan.json", lambda: self._plan(following)))
        self.grams = None  # of a model that goes on changing
        return anticipate.penalty(self.model, self.family, plan, self.config.anticipate)

    def _held_out(self) -> "HeldOut":
        from ptl_fast import budget, data

        return budget.HeldOut(
            nll=self._checked_nll,
            num_tokens=sum(map(len, data.tokenize(self.checked_documents, self.tokenizer))),
            recovered=self.dense["checked_nll"] + self.config.recovered_within,
        )

    def _checked_nll(self) -> float:
        from ptl_fast import evaluate

        documents, batch_size = self.checked_documents, self.config.eval_batch
        return evaluate.answer_nll(self.model, self.tokenizer, documents, batch_size, NLL_MAX_LENGTH)[evaluate.NLL]

    def _tokens_left(self) -> list[int]:
        """Recovery tokens of each round that is not finished, the next one first.

        Where a round's part of the data holds fewer, recovery sees that part several times.
        """
        from ptl_fast import budget

        rounds = [step for step in self.schedule if step.kind != "final"]
        shares, sizes = [step.recovery_share for step in rounds], [tokens.num_tokens for tokens in self.training]
        spent = [record["recovery_tokens"] for record in self.records[: len(rounds)]]
        left = budget.tokens_left(self.config, shares, sizes[: len(rounds)], spent)
        if self.config.final_recovery is None:
            return left
        total = self.config.recovery_tokens
        return [*left, sizes[-1] if total is None else round(self.schedule[-1].recovery_share * total)]

    def _sequences(self, step: "Round") -> "PackedTokens":
        """The round's own part of the data; with until-recovered, followed by what earlier rounds did not come to of theirs."""
        from ptl_fast import cpt

        parts = self.training[: step.number]
        if self.config.recovery_split != "until-recovered" or step.kind == "final":
            return parts[-1]
        return cpt.last_part(parts, [record["recovery_steps"] for record in self.records], self.config)

    def _remove_old_weights(self, num_finished: int) -> None:
        """Remove finished recoveries' checkpoints, and all but the newest rounds' weights and the newest optimizer state."""
        finished = range(1, num_finished + 1)
        old = [self.folder.round(number) / "model" for number in finished[: -self.config.keep_rounds]]
        old += [self.output / _optimizer_file(number) for number in finished[:-1]]
        self.folder.remove(*old, *(self.folder.round(number) / "recovery" for number in finished))

    def _plan(self, step: "Round") -> dict[str, Any]:
        """Decide what goes; the numbers behind the decision go to the round's folder."""
        from ptl_fast import plan

        if step.kind != "neurons":  # with --threshold, the rounds before decided on the width
            step = dataclasses.replace(step, width=self.model.config.intermediate_size)
        if step.kind in ("none", "hidden", "final"):
            return dataclasses.asdict(plan.plan_nothing(step))
        first = next(each.number for each in self.schedule if each.kind == step.kind)
        tensors = self._first_scores(first, step.number) if self.config.score_once and first < step.number else self._scores(step)
        if step.kind == "layers":
            decided = plan.plan_layers(step, tensors["scores"], self.config.layer_scorer)
        else:
            decided = self._plan_neurons(step, tensors)
        self.folder.write_tensors(f"round-{step.number:02d}/statistics.safetensors", tensors)
        return dataclasses.asdict(decided)

    def _scores(self, step: "Round") -> "dict[str, Tensor]":
        """The statistics of the round's own data, and the scores of neurons (also on --protect's text) or layers."""
        from ptl_fast import score

        statistics = self._statistics(step)
        if step.kind == "layers":
            return {**statistics.tensors(), "scores": score.LAYER_SCORERS[self.config.layer_scorer](statistics)}
        seed, scorer = self.config.seed * 1000 + step.number, score.SCORERS[self.config.scorer]
        scores = {"scores": scorer(statistics, self.model, self.family, seed)}
        if self.protected_tokens is not None:
            general, _ = self._collect(step.kind, self.protected_tokens, "protect")
            scores["protect_scores"] = scorer(general, self.model, self.family, seed)
        return {**statistics.tensors(), **scores}

    def _first_scores(self, first: int, number: int) -> "dict[str, Tensor]":
        """The scores of round ``first``, of what is left when round ``number`` begins, in today's order."""
        from ptl_fast import compact
        from ptl_fast.plan import PruningPlan

        tensors = self.folder.read_tensors(f"round-{first:02d}/statistics.safetensors")
        plans = [PruningPlan(**self.folder.read_json(f"round-{each:02d}/plan.json")) for each in range(first, number)]
        scores: dict[str, Tensor] = {name: tensors[name] for name in ("scores", "protect_scores", "selected_LI") if name in tensors}
        for plan in plans:
            scores = {name: compact.follow(each, plan) for name, each in scores.items()}
        return {"num_tokens": tensors["num_tokens"], **scores}

    def _plan_neurons(self, step: "Round", tensors: "dict[str, Tensor]") -> "PruningPlan":
        """What goes, by the round's scores, without what --protect's text needs."""
        from ptl_fast import plan, score

        name, scores, protected = self.config.scorer, tensors["scores"], None
        if "protect_scores" in tensors:
            protected = plan.protect(tensors["protect_scores"], self.config.protect_share)
        if self.config.threshold is None:
            return plan.plan_neurons(step, scores, protected, name, tensors.get("selected_LI"))
        assert isinstance(self.config.width_multiple, int)
        redundant = score.per_token(name, scores, tensors["num_tokens"]) <= self.config.threshold
        return plan.plan_redundant(step, scores, protected, name, redundant, self.config.width_multiple)

    def _statistics(self, step: "Round") -> "Statistics":
        """What the last round's recovery took for this one, or else those of a pass over the first of the round's data."""
        from ptl_fast import calibrate, ranks, reference_rule

        config, taken = self.config, _next_statistics(step.number - 1)
        if config.score_during_recovery and ranks.agree((self.output / taken).is_file()):
            return calibrate.Statistics(**self.folder.read_tensors(taken))
        statistics, self.grams = self._collect(step.kind, self._calibration(step.number), "calibrate")
        if step.kind == "neurons" and config.scorer == "reference":
            reasoning = [ids[: config.sequence_length] for ids in self.course.corpus.subsets[step.number - 1]]
            statistics.selected_LI = reference_rule.detect(self.model, self.family, reasoning, self.protected_samples)
        return statistics

    def _calibration(self, number: int) -> "PackedTokens":
        """The first of a round's own data, and where that is short, of the rounds' that follow, and then of those before."""
        tokens, *others = [*self.training[number - 1 :], *self.training[: number - 1]]
        for part in others:
            if tokens.num_tokens < self.config.calibration_tokens:
                tokens = tokens.followed_by(part)
        return tokens.first(self.config.calibration_tokens)

    def _collect(self, kind: str, tokens: "PackedTokens", description: str) -> "tuple[Statistics, GramMatrices | None]":
        """What scoring and compensating a round of this kind need to know of these tokens, by one pass where memory allows."""
        from ptl_fast import calibrate, reconstruct

        batch_size, grams, by_price = self.config.micro_batch, None, self.config.scorer == "reconstruction"
        if kind == "neurons" and (by_price or self.config.compensate):
            grams = reconstruct.GramMatrices(self.model, self.family, tokens, batch_size)
        statistics = calibrate.collect(self.model, self.family, tokens, batch_size, description, self._extra(kind), grams)
        if grams is not None and by_price:
            statistics.price_LI = reconstruct.prices(grams)
        return statistics, grams

    def _extra(self, kind: str) -> "frozenset[Extra]":
        """What a round of this kind needs beyond the usual statistics, or what the user wants to have."""
        from ptl_fast import score

        everything: frozenset[Extra] = frozenset({"sums"}) if self.config.all_statistics else frozenset()
        return everything | score.EXTRA.get(self.config.layer_scorer if kind == "layers" else self.config.scorer, frozenset())

    def _evaluate(self, description: str) -> dict[str, dict[str, float]]:
        """{task: {metric: value}}, computed by the main rank while the others wait."""
        from ptl_fast import evaluate, ranks

        if not ranks.is_main():
            return {}
        results = {}
        for task in self.tasks:
            if task.task == evaluate.NLL:
                documents = self.nll_documents[task.label]
                label = f"{description}: {task.label}"
                results[task.label] = evaluate.answer_nll(
                    self.model, self.tokenizer, documents, self.config.eval_batch, NLL_MAX_LENGTH, label
                )
            else:
                loaded = self.lm_eval_tasks[task.label]
                results[task.label] = evaluate.run_lm_eval(
                    self.model, self.tokenizer, loaded, self.config.eval_batch, self.config.eval_limit
                )
            for metric, value in results[task.label].items():
                if not math.isfinite(value):
                    raise ValueError(
                        f"{description}: {task.label} {metric} is {value}, the model has diverged; lower --learning-rate or"
                        " prune less in a round (more --rounds)"
                    )
        return results

    def _load_data(self) -> None:
        from ptl_fast import data, evaluate, models, prompts, sources

        config = self.config
        assert config.model is not None
        assert config.data is not None
        self.tokenizer = models.load_tokenizer(config.model)
        if config.teacher is not None:
            models.check_same_vocabulary(config.teacher, self.tokenizer)
        self.lm_eval_tasks = {task.label: evaluate.load_lm_eval_task(task) for task in self.tasks if task.task != evaluate.NLL}
        if self.gate_on is not None:
            task, metric = self.gate_on
            metrics = evaluate.metrics(self.lm_eval_tasks.get(task))
            guard.check_metric(task, metric, list(metrics))
            self.higher_is_better = metrics[metric]
        if self.lm_eval_tasks and self.tokenizer.eos_token_id is None:
            raise ValueError(f"--model {config.model}: lm-eval needs a tokenizer with an end-of-sequence token; set eos_token")
        needs_held_out = any(task.task == evaluate.NLL and task.file is None for task in self.tasks)
        form = _form(config)
        num_evaluated = NUM_HELD_OUT if needs_held_out else 0
        num_checked = NUM_CHECKED if config.recovery_split == "until-recovered" else 0
        shares = [step.recovery_share for step in self.schedule]
        total = sum(shares) if config.final_recovery is not None else 1.0  # the final one has its tokens on top
        corpus = data.split_corpus(
            sources.open_parts(config.data, form, config.seed if config.streaming else None),
            self.tokenizer,
            shares=[share / total for share in shares],
            num_tokens=None if config.recovery_tokens is None else round(total * config.recovery_tokens),
            num_held_out=num_evaluated + num_checked,
            seed=config.seed,
            keep_documents=config.uses_grpo,
        )
        if config.uses_grpo:  # say so before any work is done; lengths are looked at when a round comes to them
            prompts.uses_chat(self.tokenizer, config)
            if not all(any(document.question for document in subset) for subset in corpus.documents):
                raise ValueError(f"{config.data} has too few questions for each round; grpo needs {{question, answer}} data")
        self.course.begin(corpus, data.padding_token(self.tokenizer))
        cut = len(corpus.held_out) * num_checked // max(1, num_evaluated + num_checked)  # small data has fewer of both
        held_out = corpus.held_out[cut:]
        self.checked_documents = self._checked(corpus.held_out[:cut]) if num_checked else []
        protected = self._load_protect(form.template)
        self.nll_documents = {
            task.label: sources.load_documents(task.file, form, config.eval_limit) if task.file else held_out[: config.eval_limit]
            for task in self.tasks
            if task.task == evaluate.NLL
        }
        if not all(self.nll_documents.values()):
            raise ValueError(f"{config.data} has too few documents to hold some out for nll; give more, or --eval-tasks nll=FILE")
        self.fingerprint = {
            "data": corpus.fingerprint,
            "protect": protected,
            "nll": {label: data.fingerprint(documents) for label, documents in self.nll_documents.items()},
            "weights": models.weights_fingerprint(config.model),
            "teacher": models.weights_fingerprint(config.teacher) if config.teacher is not None else {},
        }

    def _checked(self, documents: "list[Document]") -> "list[Document]":
        """As many of these documents as the checks of --recovery-split until-recovered may read."""
        from ptl_fast import budget, data

        if not documents:
            raise ValueError(
                f"{self.config.data} has too few documents to hold some out for --recovery-split until-recovered; give more"
            )
        lengths = [len(ids) for ids in data.tokenize(documents, self.tokenizer)]
        num_tokens = self.config.recovery_tokens or sum(tokens.num_tokens for tokens in self.training)
        return documents[: budget.num_affordable(lengths, num_tokens, len(self.schedule))]

    def _load_protect(self, template: str) -> str | None:
        """Take a sample of --protect; return the fingerprint of all that was read."""
        from ptl_fast import data, reference_rule, sources

        self.protected_tokens = None
        if self.config.protect is None:
            return None
        by_reference = self.config.scorer == "reference"
        corpus = data.split_corpus(
            sources.open_parts(self.config.protect, sources.Form(template=template)),
            self.tokenizer,
            shares=[1.0],
            num_tokens=None if by_reference else self.config.calibration_tokens,
            num_held_out=0,
            seed=self.config.seed,
        )
        if by_reference:  # one sample at a time, and no neuron is protected besides
            samples = corpus.subsets[0][: reference_rule.NUM_GENERAL]
            self.protected_samples = [ids[: self.config.sequence_length] for ids in samples]
        else:
            self.protected_tokens = self._pack(corpus.subsets[0], self.config.protect)
        return corpus.fingerprint

    def _pack(self, documents: Iterable[Sequence[int]], source: str) -> "PackedTokens":
        from ptl_fast import data

        return data.pack(documents, self.config.sequence_length, data.padding_token(self.tokenizer), source)

    def _checked_folder(self) -> "RunFolder":
        from ptl_fast.rundir import RunFolder

        folder = RunFolder(self.output, {"config": self.identity, "inputs": self.fingerprint})
        folder.check(self.config.overwrite)
        # float32 weights of the kept rounds and of a round in the making; a checkpoint adds two Adam moments, and so does each
        # of two rounds with --keep-optimizer-state
        num_moments = 4 if self.config.keep_optimizer_state else 0
        num_models = self.config.keep_rounds + 1 + (self.gate_on is not None)  # an extension begins with what recovery left
        weights = self._size()["num_parameters"] * 4 * (num_models + 3 + num_moments)
        folder.check_disk(weights + self._predictions_bytes())
        return folder

    def _predictions_bytes(self) -> int:
        """Disk space of the teacher's predictions for the largest round, at most; 0 without distillation."""
        from ptl_fast import teacher

        if "distill" not in [*self.config.recoveries, *self.config.final_recoveries]:
            return 0
        row_bytes = teacher.row_bytes(self.config.sequence_length, self.config.distill_top_k, self.hf_config.vocab_size)
        sizes = [len(tokens) for tokens in self.training]  # with until-recovered, the last round may come to all of them
        return row_bytes * (sum(sizes) if self.config.recovery_split == "until-recovered" else max(sizes, default=0))

    def _load_weights(self, number: int, extension: int = 0) -> None:
        """Load the original (0) or what a round, or an extension of it, left; check that the model computes finite numbers."""
        from ptl_fast import calibrate, families, models

        assert self.config.model is not None
        source = str(self.folder.round(number) / f"model{suffix(extension)}") if number else self.config.model
        self.model = models.load_model(source, self.config, self.device)
        self.family = families.find_family(self.model)
        num_embeddings = len(self.model.get_input_embeddings().weight)  # type: ignore[arg-type]
        if max(int(tokens.input_ids.max()) for tokens in self.training) >= num_embeddings:
            raise ValueError(f"--model {source}: its tokenizer gives ids beyond the model's {num_embeddings} embeddings")
        calibrate.collect(self.model, self.family, self.training[0].first(1), 1, "check")

    def _size(self, step: "Round | PruningPlan | None" = None) -> dict[str, int]:
        """num_parameters, num_layers, width and flops_per_token of the original, or of what a round leaves."""
        from ptl_fast import flops

        width = step.width if step else self.hf_config.intermediate_size
        num_layers = step.num_layers if step else self.hf_config.num_hidden_layers
        # the mean number of tokens that a token of a full sequence sees
        context_length, hidden_size = self.config.sequence_length // 2, step.hidden_size if step else None
        return flops.predicted_size(self.hf_config, width, num_layers, context_length, hidden_size)

    def _result_is_sliced(self) -> bool:
        from ptl_fast import slicegpt

        return self.config.slice_hidden is not None or slicegpt.is_sliced(self.hf_config)

    def _how_to_load(self) -> str:
        imports = ""
        if self._result_is_sliced():
            imports = "    import ptl_fast.slicegpt  # without it, transformers refuses this model type\n"
        return HOW_TO_LOAD.format(final=self.output / "final", imports=imports)

    def _write_report(self, final: dict[str, Any] | None = None) -> dict[str, Any]:
        from ptl_fast import report

        content = {
            "environment": _environment(self.device),
            "config": dataclasses.asdict(self.config),
            "dense": self.dense,
            "rounds": self.records,
            "final": final,
        }
        if self.gate_on is not None:
            content["decisions"] = self.course.decisions_as_json()
            content["stopped"] = guard.stopped_sentence(self.course.decisions)
        self.folder.write_json("report.json", content)
        self.folder.write_text("report.md", report.to_markdown(content, self._how_to_load()))
        return content

    def _finish(self) -> dict[str, Any]:
        from ptl_fast import models, ranks, report

        last = self.records[-1] if self.records else self.dense
        final = {name: last[name] for name in ("num_parameters", "num_layers", "width", "flops_per_token", "eval")}
        content = self._write_report(final)
        source = self.folder.round(len(self.records)) / "model"
        if not ranks.agree((self.output / "final").is_dir()):
            if not self.records:  # the guard let no round pass
                original = models.load_model(str(self.config.model), self.config, self.device)
                self.folder.save_model("round-00/model", original, self.tokenizer)
            card = report.model_card(content, str(self.config.model), self._result_is_sliced())
            self.folder.publish_final(source, card)
        self.folder.remove(self.folder.round(0), self.output / _optimizer_file(len(self.records)))
        where = f"Result: {self.output / 'final'}   Report: {self.output / 'report.md'}"
        stopped = f"{content['stopped']}\n" if content.get("stopped") else ""
        _say(stopped + where + "\n\n" + self._how_to_load())
        return content


def _optimizer_file(number: int, extension: int = 0) -> str:
    """The file with the optimizer's state after round ``number``, or after an extension of it."""
    return f"round-{number:02d}/optimizer{suffix(extension)}.safetensors"


def _next_statistics(number: int, extension: int = 0) -> str:
    """The file with the statistics that round ``number``, or an extension of it, took for the next round."""
    return f"round-{number:02d}/next_statistics{suffix(extension)}.safetensors"


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command line; returns the exit code."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        config = parse(arguments)
        config.check()
        if not config.debug and not config.dry_run:  # it imports transformers, which a dry run may not need
            quiet_libraries()
        run(config)
    except (ValueError, OSError, argparse.ArgumentError) as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        return 130
    return 0


def quiet_libraries() -> None:
    """Leave only progress bars and our own messages on the screen."""
    import logging
    import warnings

    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _schedule(config: Config, hf_config: "PretrainedConfig") -> "list[Round]":
    """The rounds that the settings ask for."""
    from ptl_fast import plan

    return plan.with_final(_pruning_schedule(config, hf_config), config)


def _pruning_schedule(config: Config, hf_config: "PretrainedConfig") -> "list[Round]":
    from ptl_fast import plan

    width, num_layers = hf_config.intermediate_size, hf_config.num_hidden_layers
    if config.slice_hidden is not None:
        from ptl_fast import slicegpt

        schedule = plan.make_slicing_schedule(config, width, num_layers, hf_config.hidden_size)
        assert schedule[0].hidden_size is not None
        slicegpt.sliced_config(hf_config, schedule[0].hidden_size)  # says so now if this model type cannot be sliced
        return schedule
    if config.drop_layers and hasattr(hf_config, "sliced_hidden_size"):
        raise ValueError(
            f"--drop-layers: the layers of {config.model} cannot go, each one's output stands in axes of its own (SliceGPT)"
        )
    return plan.make_schedule(config, width, num_layers)


def _form(config: Config) -> "Form":
    from ptl_fast import sources

    template = sources.make_template(config.template)
    return sources.Form(config.question_column, config.answer_column, config.text_column, template)


def _check_names(config: Config) -> None:
    from ptl_fast import recover, rewards, score

    names: list[tuple[str, str, Iterable[str]]] = [
        ("--scorer", config.scorer, score.SCORERS),
        ("--layer-scorer", config.layer_scorer, score.LAYER_SCORERS),
        *(("--recovery", name, recover.RECOVERIES) for name in config.recoveries),
        *(("--final-recovery", name, recover.RECOVERIES) for name in config.final_recoveries),
    ]
    for flag, name, choices in names:
        if name not in choices:
            raise ValueError(f"unknown {flag} {name}; choose {', '.join(choices)}")
    _form(config)
    rewards.parse_weights(config.reward_weights)
    if config.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError("--rollouts vllm: vllm is not installed; pip install vllm, or use --rollouts transformers")
    if config.deepspeed is not None:
        deepspeed_file(config.deepspeed)


def _environment(device: str) -> dict[str, str]:
    import importlib.metadata
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    packages = ("ptl_fast", "torch", "triton", "transformers", "trl", "datasets", "deepspeed", "lm_eval", "math_verify")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"device": name, "threads": str(torch.get_num_threads()), "python": platform.python_version(), **versions}


def _say(text: str) -> None:
    from ptl_fast import ranks

    if ranks.is_main():
        print(text, flush=True)


class _CallableModule(types.ModuleType):
    """Lets ``from ptl_fast import compress`` be the function, although a submodule has the same name."""

    def __call__(self, **settings: Any) -> dict[str, Any]:
        return compress(**settings)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
