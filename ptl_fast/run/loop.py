"""The loop: one run from its settings to its result.

With its halves, prune_step.py and recover_step.py, it alone knows the order of the stages. Each
stage's result is written to the run's folder before the next begins, so the same command continues
a run that was killed. Heavy libraries are imported when work begins, so that --help answers at
once.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ptl_fast.base.console import say
from ptl_fast.config.command_line import make_config
from ptl_fast.config.config import Config
from ptl_fast.run import inputs, prune_step, quality_gate, recover_step
from ptl_fast.run.context import State, optimizer_file
from ptl_fast.run.quality_gate import suffix
from ptl_fast.run.rounds import DECISIONS, Course, make_schedule

if TYPE_CHECKING:
    from ptl_fast.pruning.plan import PruningPlan
    from ptl_fast.pruning.schedule import Round
    from ptl_fast.run.folder import RunFolder
from ptl_fast.run.checks import (
    check_lengths,
    check_names,
    mention_missing_kernels,
    mention_missing_protections,
)
from ptl_fast.run.dry_run import dry_run

T = TypeVar("T")
STAGES = ("calibrate", "compact", "recover", "evaluate")
WIDTH_MULTIPLE = "width_multiple.json"
HOW_TO_LOAD = """Load the result:

{imports}    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{final}")
    tokenizer = AutoTokenizer.from_pretrained("{final}")"""


def compress(**settings: Any) -> dict[str, Any]:
    """Compress a model and return the content of report.json. Settings are the fields of
    ``ptl_fast.config.Config``.

    Raises:
        ValueError: a setting, the model or the data does not fit; the message names the fix.
    """
    return run(make_config(settings))


def planned_sizes(**settings: Any) -> list[dict[str, int]]:
    """num_parameters, num_layers, width and flops_per_token of the original and of what each round
    leaves, from the config alone.

    Raises:
        ValueError: as ``compress`` does for a setting or model that does not fit; the data is not
            read.
    """
    config = make_config(settings)
    config.check()
    job = Job(config)
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
    job = Job(config)
    mention_missing_kernels(job.device)
    if config.deepspeed is not None and job.device == "cpu" and "WORLD_SIZE" not in os.environ:
        say("--deepspeed has no use in one process on a CPU: recovery runs without it.")
    if config.allow_code_execution:
        mention_missing_protections()
    return job.run()


class Job(State):
    """One run. Constructing it checks the settings and writes nothing."""

    chosen: dict[str, Any] | None = None
    """What --width-multiple auto came to."""

    def __init__(self, config: Config) -> None:
        from ptl_fast.base import distributed
        from ptl_fast.evaluation import tasks
        from ptl_fast.model import loading
        from ptl_fast.recovery import trainer

        assert config.model is not None
        assert config.data is not None
        check_names(config)
        self.config, self.identity = config, config.identity()
        self.device = loading.resolve_device(config.device)
        if config.liger:
            trainer.check_liger(self.device)
        self.hf_config = loading.load_config(config.model)
        check_lengths(config, self.hf_config)
        self.output = Path(config.output or f"runs/{_run_name(config.model)}")
        for flag, model in (("--model", config.model), ("--teacher", config.teacher)):
            if (
                model is not None
                and Path(model).is_dir()
                and Path(model).resolve().is_relative_to(self.output.resolve())
            ):
                raise ValueError(
                    f"{flag} {model} lies in this run's own folder, {self.output}; give another"
                    " --output"
                )
        if config.width_multiple == "auto":
            self._choose_width_multiple()
        self.course = Course(
            self.config, self.hf_config, make_schedule(self.config, self.hf_config)
        )
        self.tasks = tasks.parse_tasks(config.eval_tasks, config.allow_code_execution)
        self.gate_on = (
            quality_gate.parse_gate(config.gate, [task.label for task in self.tasks])
            if config.gate
            else None
        )
        distributed.join(self.device)
        trainer.batch_split(config)
        if config.uses_grpo:
            trainer.rollout_split(config)

    def _choose_width_multiple(self) -> None:
        """Decide what auto is, or take what the run decided before: a second measurement might say
        something else.
        """
        import torch

        from ptl_fast.base import distributed
        from ptl_fast.pruning import width_multiple

        distributed.join(self.device)
        kept, self.chosen = self.output / WIDTH_MULTIPLE, None
        if kept.is_file() and not self.config.overwrite:
            self.chosen = json.loads(kept.read_text())
        if distributed.is_main() and self.chosen is None:
            dtype = getattr(torch, "float32" if self.config.dtype == "auto" else self.config.dtype)
            self.chosen = width_multiple.choose(
                self.device, self.hf_config.hidden_size, self.hf_config.intermediate_size, dtype
            )
        self.chosen = distributed.agree(self.chosen)
        assert self.chosen is not None
        self.config = dataclasses.replace(self.config, width_multiple=self.chosen["multiple"])
        say(f"--width-multiple auto is {self.chosen['multiple']}: {self.chosen['reason']}")

    def run(self) -> dict[str, Any]:
        """The loop. Inputs are checked first; nothing is written before they fit."""
        from ptl_fast.base import distributed
        from ptl_fast.run import report

        self.inputs = inputs.load(self.config, self.tasks, self.course)
        self.folder = self._checked_folder()
        num_finished = 0 if self.config.overwrite else self.folder.num_finished_rounds()
        if not self.config.overwrite:
            self.course.take(distributed.agree(self.folder.read_json(DECISIONS)) or [])
        if num_finished < len(self.schedule):
            self._load_weights(num_finished)
        self.folder.open(self.config.overwrite)
        if self.chosen is not None:
            self.folder.write_json(WIDTH_MULTIPLE, self.chosen)
        self._put_aside_failed_rounds()
        self._remove_old_weights(num_finished)
        if num_finished:
            say(f"{self.output}: continuing after round {num_finished} of {len(self.schedule)}")
        self.dense = self.folder.once("dense.json", self._measure_dense)
        self.records = [
            self.folder.read_json(f"round-{number:02d}/record.json")
            for number in range(1, num_finished + 1)
        ]
        while len(self.records) < len(self.schedule):
            self._round(self.schedule[len(self.records)])
            self._write_report()
            say("\n" + report.table(self.dense, self.records) + "\n")
        return self._finish()

    def _round(self, step: "Round") -> None:
        """Prune and recover once. If the guard undoes it, the model before is there again, and the
        schedule is another one.
        """
        from ptl_fast.base import distributed

        name, already_passed = (
            f"round-{step.number:02d}",
            quality_gate.has_passed(self.course.decisions, step.number),
        )
        decision = None if already_passed else self._attempt(step)
        if decision is not None and decision.action != "pass":
            self._put_aside_failed_rounds()
            if self.schedule[len(self.records) :]:
                self._load_weights(len(self.records))
            return
        self.folder.keep_extension(
            step.number, len(quality_gate.extensions(self.course.decisions, step.number))
        )
        if already_passed:
            self._load_weights(step.number)
        self.folder.write_json(f"{name}/record.json", distributed.agree(self._record(name)))
        self._remove_old_weights(step.number)
        self.records.append(self.folder.read_json(f"{name}/record.json"))

    def _attempt(self, step: "Round") -> "quality_gate.Decision | None":
        """Plan, prune and recover, and go on recovering as the guard decides. What is on disk is
        not computed again.
        """
        from ptl_fast.pruning.plan import PruningPlan
        from ptl_fast.run import report

        name, stage = f"round-{step.number:02d}", functools.partial(self._stage, step.number)
        decide = functools.partial(prune_step.plan_round, self, step)
        plan = PruningPlan(
            **self.folder.once(f"{name}/plan.json", lambda: stage("calibrate", decide))
        )
        share = 0.0 if plan.removes_nothing else step.recovery_share
        step = dataclasses.replace(step, width=plan.width, recovery_share=share)
        if plan.num_redundant is not None:
            width = (self.records[-1] if self.records else self.dense)["width"]
            say(report.redundant_line(step.number, plan.num_redundant, width - plan.width))

        while True:
            extension = len(quality_gate.extensions(self.course.decisions, step.number))
            decision = self._judge(step, self._recovered(step, plan, extension))
            if decision is None or decision.action != "extend":
                return decision

    def _recovered(self, step: "Round", plan: "PruningPlan", extension: int) -> dict[str, Any]:
        """Train, and evaluate what came of it; nothing where it diverged, which the guard will
        undo.
        """
        from ptl_fast.base.errors import Diverged
        from ptl_fast.evaluation import tasks

        name, stage = f"round-{step.number:02d}", functools.partial(self._stage, step.number)
        evaluated, recovery = (
            f"{name}/recovered{suffix(extension)}.json",
            f"{name}/recovery{suffix(extension)}.json",
        )
        try:
            self._train(step, plan, extension)
            same = None
            if not recover_step.has_trained(
                self.folder.read_json(recovery)
            ):  # nothing has changed the model since
                same = self.folder.read_json(f"{name}/pruned.json")
            run_tasks = functools.partial(tasks.run_tasks, self, f"round {step.number} recovered")
            return self.folder.once(evaluated, lambda: same or stage("evaluate", run_tasks))
        except Diverged as error:
            if not self.is_judged(step):
                raise
            spent = self.folder.read_json(recovery) or {
                "recovery_tokens": 0,
                "recovery_steps": 0,
                "checks": [],
            }
            self.folder.write_json(recovery, {**spent, "diverged": str(error)})
            self.folder.write_json(evaluated, {})
            return {}

    def _train(self, step: "Round", plan: "PruningPlan", extension: int) -> None:
        """Leave in memory and on disk the model after the round's recovery, or after an extension
        of it.
        """
        from ptl_fast.base import distributed
        from ptl_fast.evaluation import tasks

        name, stage = f"round-{step.number:02d}", functools.partial(self._stage, step.number)
        saved = f"{name}/model{suffix(extension)}"
        if distributed.agree((self.output / saved).is_dir()):
            self._load_weights(step.number, extension)
            return
        if extension:
            self._load_weights(step.number, extension - 1)
        else:
            stage("compact", lambda: prune_step.compact_round(self, plan))
            run_tasks = functools.partial(tasks.run_tasks, self, f"round {step.number} pruned")
            before = self.records[-1]["eval"] if step.kind == "final" else None  # nothing goes
            self.folder.once(f"{name}/pruned.json", lambda: before or stage("evaluate", run_tasks))
        stage("recover", lambda: recover_step.recover_round(self, step, extension))
        self.folder.save_model(saved, self.model, self.inputs.tokenizer)
        if extension:
            self.folder.remove(self.output / f"{name}/model{suffix(extension - 1)}")

    def _stage(self, number: int, label: str, compute: Callable[[], T]) -> T:
        """Run a stage of a round from a seed of its own, and add its seconds to those on disk."""
        from ptl_fast.model import loading

        loading.seed_everything(self.config.seed * 1000 + number)
        start = time.perf_counter()
        value = compute()
        name = f"round-{number:02d}/seconds.json"
        seconds = self.folder.read_json(name) or dict.fromkeys(STAGES, 0.0)
        seconds[label] += time.perf_counter() - start
        self.folder.write_json(name, seconds)
        return value

    def _record(self, name: str) -> dict[str, Any]:
        """What the files of a round's folder say, as one."""
        from ptl_fast.pruning.plan import PruningPlan

        plan = PruningPlan(**self.folder.read_json(f"{name}/plan.json"))
        num_extensions = len(list((self.output / name).glob("recovery-extra-*.json")))
        extra = [
            self.folder.read_json(f"{name}/recovery{suffix(number + 1)}.json")
            for number in range(num_extensions)
        ]
        return {
            **self._size(plan),
            "eval": self.folder.read_json(f"{name}/recovered{suffix(num_extensions)}.json"),
            "round": plan.round,
            "kind": plan.kind,
            "seconds": self.folder.read_json(f"{name}/seconds.json"),
            "eval_pruned": self.folder.read_json(f"{name}/pruned.json"),
            **self.folder.read_json(f"{name}/recovery.json"),
            **({"extra_recovery": extra} if extra else {}),
            **{
                name: getattr(plan, name)
                for name in ("num_redundant", "dropped_layers", "highest_removed", "lowest_kept")
            },
        }

    def _gate(self) -> "quality_gate.Gate | None":
        """What rounds must reach, once the original has been measured."""
        from ptl_fast.evaluation import tasks

        if self.gate_on is None:
            return None
        assert self.config.max_drop is not None
        task, metric = self.gate_on
        measured = self.dense["eval"][task]
        quality_gate.check_metric(task, metric, list(measured))
        return quality_gate.Gate(
            task=task,
            metric=metric,
            higher_is_better=tasks.metrics(self.inputs.lm_eval_tasks.get(task))[metric],
            max_drop=self.config.max_drop,
            dense=measured[metric],
        )

    def _judge(self, step: "Round", recovered: dict[str, Any]) -> "quality_gate.Decision | None":
        """With a gate, decide what follows from the evaluation of a round, and write it down before
        it does.
        """
        gate = self._gate() if self.is_judged(step) else None
        if gate is None:
            return None
        name, num_extensions = (
            f"round-{step.number:02d}",
            len(quality_gate.extensions(self.course.decisions, step.number)),
        )
        tokens = self.folder.read_json(f"{name}/recovery{suffix(num_extensions)}.json")[
            "recovery_tokens"
        ]
        measured = float(recovered[gate.task][gate.metric]) if recovered else None
        decision = self.course.judge(
            gate, step, measured, tokens, recover_step.tokens_left(self)[0]
        )
        self.folder.write_json(DECISIONS, self.course.decisions_as_json())
        say(quality_gate.sentence(decision))
        return decision

    def _put_aside_failed_rounds(self) -> None:
        """Rename the folders of attempts that the guard has undone; they keep plan and record. What
        is done is not done again.
        """
        for decision in self.course.decisions:
            if decision.action in ("back-off", "stop"):
                failed = self.folder.put_aside(decision.round, decision.attempt)
                self.folder.once(f"{failed}/record.json", functools.partial(self._record, failed))

    def _measure_dense(self) -> dict[str, Any]:
        """The original's size and evaluation, and its NLL of the text by which rounds know that
        they have recovered.
        """
        from ptl_fast.evaluation import tasks

        dense = {**self._size(), "eval": tasks.run_tasks(self, "dense")}
        return (
            {**dense, "checked_nll": recover_step.checked_nll(self)}
            if self.inputs.checked_documents
            else dense
        )

    def _remove_old_weights(self, num_finished: int) -> None:
        """Remove finished recoveries' checkpoints, and all but the newest rounds' weights and the
        newest optimizer state.
        """
        finished = range(1, num_finished + 1)
        old = [
            self.folder.round(number) / "model" for number in finished[: -self.config.keep_rounds]
        ]
        old += [self.output / optimizer_file(number) for number in finished[:-1]]
        self.folder.remove(*old, *(self.folder.round(number) / "recovery" for number in finished))

    def _checked_folder(self) -> "RunFolder":
        from ptl_fast.run.folder import RunFolder

        folder = RunFolder(
            self.output, {"config": self.identity, "inputs": self.inputs.fingerprint}
        )
        for name, (before, now) in folder.check(self.config.overwrite).items():
            flag = f"--{name.replace('_', '-')}"
            say(
                f"{self.output}: {flag} was {before} and is {now} from here; the result is the"
                " same but for rounding."
            )
        # float32 weights of the kept rounds and of a round in the making; a checkpoint adds two
        # Adam moments, and so does each of two rounds with --keep-optimizer-state
        num_moments = 4 if self.config.keep_optimizer_state else 0
        num_models = (
            self.config.keep_rounds + 1 + (self.gate_on is not None)
        )  # an extension begins with what recovery left
        weights = self._size()["num_parameters"] * 4 * (num_models + 3 + num_moments)
        folder.check_disk(weights + self._predictions_bytes())
        return folder

    def _predictions_bytes(self) -> int:
        """Disk space of the teacher's predictions for the largest round, at most; 0 without
        distillation.
        """
        from ptl_fast.recovery.distillation import teacher_cache

        if "distill" not in [*self.config.recoveries, *self.config.final_recoveries]:
            return 0
        row_bytes = teacher_cache.row_bytes(
            self.config.sequence_length, self.config.distill_top_k, self.hf_config.vocab_size
        )
        sizes = [
            len(tokens) for tokens in self.training
        ]  # with until-recovered, the last round may come to all of them
        return row_bytes * (
            sum(sizes) if self.config.recovery_split == "until-recovered" else max(sizes, default=0)
        )

    def _load_weights(self, number: int, extension: int = 0) -> None:
        """Load the original (0) or what a round, or an extension of it, left; check that the model
        computes finite numbers.
        """
        from ptl_fast.model import families, loading
        from ptl_fast.scoring import statistics

        assert self.config.model is not None
        source = (
            str(self.folder.round(number) / f"model{suffix(extension)}")
            if number
            else self.config.model
        )
        self.model = loading.load_model(source, self.config, self.device)
        self.family = families.find_family(self.model)
        num_embeddings = len(self.model.get_input_embeddings().weight)  # type: ignore[arg-type]
        if max(int(tokens.input_ids.max()) for tokens in self.training) >= num_embeddings:
            raise ValueError(
                f"--model {source}: its tokenizer gives ids beyond the model's {num_embeddings}"
                " embeddings"
            )
        statistics.collect(self.model, self.family, self.training[0].first(1), 1, "check")

    def _size(self, step: "Round | PruningPlan | None" = None) -> dict[str, int]:
        """num_parameters, num_layers, width and flops_per_token of the original, or of what a round
        leaves.
        """
        from ptl_fast.model import flops

        width = step.width if step else self.hf_config.intermediate_size
        num_layers = step.num_layers if step else self.hf_config.num_hidden_layers
        # the mean number of tokens that a token of a full sequence sees
        context_length, hidden_size = (
            self.config.sequence_length // 2,
            step.hidden_size if step else None,
        )
        return flops.predicted_size(self.hf_config, width, num_layers, context_length, hidden_size)

    def _result_is_sliced(self) -> bool:
        from ptl_fast.baselines import slicegpt

        return self.config.slice_hidden is not None or slicegpt.is_sliced(self.hf_config)

    def _how_to_load(self) -> str:
        imports = ""
        if self._result_is_sliced():
            imports = (
                "    import ptl_fast.slicegpt  # without it, transformers refuses this model type\n"
            )
        return HOW_TO_LOAD.format(final=self.output / "final", imports=imports)

    def _write_report(self, final: dict[str, Any] | None = None) -> dict[str, Any]:
        from ptl_fast.run import report

        content: dict[str, Any] = {
            "environment": report.environment(self.device),
            "config": dataclasses.asdict(self.config),
            "dense": self.dense,
            "rounds": self.records,
            "final": final,
        }
        if self.gate_on is not None:
            content["decisions"] = self.course.decisions_as_json()
            content["stopped"] = quality_gate.stopped_sentence(self.course.decisions)
        self.folder.write_json("report.json", content)
        self.folder.write_text("report.md", report.to_markdown(content, self._how_to_load()))
        return content

    def _finish(self) -> dict[str, Any]:
        from ptl_fast.base import distributed
        from ptl_fast.model import loading
        from ptl_fast.run import report

        last = self.records[-1] if self.records else self.dense
        final = {
            name: last[name]
            for name in ("num_parameters", "num_layers", "width", "flops_per_token", "eval")
        }
        content = self._write_report(final)
        source = self.folder.round(len(self.records)) / "model"
        if not distributed.agree((self.output / "final").is_dir()):
            if not self.records:  # the guard let no round pass
                original = loading.load_model(str(self.config.model), self.config, self.device)
                self.folder.save_model("round-00/model", original, self.inputs.tokenizer)
            card = report.model_card(content, str(self.config.model), self._result_is_sliced())
            self.folder.publish_final(source, card)
        self.folder.remove(self.folder.round(0), self.output / optimizer_file(len(self.records)))
        where = f"Result: {self.output / 'final'}   Report: {self.output / 'report.md'}"
        stopped = f"{content['stopped']}\n" if content.get("stopped") else ""
        say(stopped + where + "\n\n" + self._how_to_load())
        return content


def _run_name(model: str) -> str:
    """What a run is called without --output: as the model, and a run's result as the run."""
    path = Path(model).resolve() if Path(model).is_dir() else Path(model)
    return f"{path.parent.name}-final" if path.name == "final" else path.name
