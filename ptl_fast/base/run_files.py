"""The files of a run: every name is here. base/stored.py says of each whether it is done.

state.json                       the run's settings and hashes of its inputs, checked on resume
traces/00-00000.jsonl            with --traces: the original model's own answers to some documents
traces/summary.json              how many, how many right; written last: the traces are whole
copies/                          copies of state.json, decisions.json and width_multiple.json, which
                                 no stage can make again
checksums.list                  in every folder: what was written into it (base/checksums.py)
dense.json                       size and evaluation of the original model
dense_answers.json               if a task asks for answers: those to its first problems
round-02/traces/                 with --traces-every-round: those of the model before the round
round-01/plan.json               which neurons or layers were removed
round-01/statistics.safetensors  the statistics and scores that the plan was made from
round-01/token_weights.json      with --token-weights: how far the probe departs, how unevenly
round-01/folded_layers.json      with --compensate-layers: what became of the dropped layers
round-01/streamed/               with --stream, until the round is finished: the pruned model,
                                 written layer by layer
  model-00001-of-00035.safetensors   a shard a layer, then one for each tensor outside the layers
  choices/layer-00000.safetensors    which neurons of the layer stay, and their scores
  states/0/                      a rank's hidden states, where they are too many for memory
  model.safetensors.index.json   written last
round-01/pruned.json             evaluation before recovery
round-01/pruned_answers.json, recovered_answers.json  the answers of those evaluations
round-01/recovery/               until the round is finished, what its recovery needs to go on:
  checkpoint-8/                  the newest checkpoint, the Trainer's own files and
    watched.pt, closing.json     statistics so far, state of the closing phase
    complete                     sizes and checksums of all files; written last: the checkpoint
                                 is whole
  teacher/part-00000.safetensors with distill: the teacher's predictions
  start/                         with --rollouts vllm: the model that vLLM loads
  cpt/, grpo/                    with several methods: all of this for each of them, or
    weights.pt, result.json      of a finished one, what it left; with complete
round-01/trained/                with --stream and zero3, until the round is finished: the model
                                 after recovery, in the same files
round-01/recovery.json           recovery's steps and tokens, checks of held-out text, rewards
round-01/next_statistics.safetensors   with --score-during-recovery: statistics for the next round
round-01/optimizer.safetensors   with --keep-optimizer-state: Adam moments, until the next round is
                                 finished
round-01/model/                  weights after recovery, of the newest --keep-rounds rounds
round-01/recovered.json          evaluation after recovery
round-01/worse_recovery.json     if recovery left the model worse than pruning alone: its evaluation
round-01/seconds.json            wall-clock time of each stage
round-01/record.json             all of this in one file; written last: the round is finished
round-01/*-extra-1*              with --gate: the same files of an extension of recovery; its model
                                 becomes model/ when the round passes
round-01.failed-1/               with --gate: a round that was undone, without weights
decisions.json                   with --gate: the quality gate's measurements and decisions
final/                           the result, a Hugging Face model folder: the last round's model,
                                 which was compared with the one in memory when it was saved
sizes/round-01/                  with --keep-sizes: a copy of that round's model, a result like
                                 final/, which has the last round's
sizes/sizes.json, README.md      every round's size and evaluation, and where its model is
final.changed-1/                 a result that was damaged or changed, when final/ was made again
report.json, report.md, report.html  the report, after every round
log/                             TensorBoard logs: round-01/ of its training, and
log/rounds/                      of what the rounds came to
log/rounds/tracked.json          with --report-to: the run's name in trackers, and how many rounds
                                 each has (the original model is the first)
width_multiple.json              with --width-multiple auto: the timings and the chosen multiple
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ptl_fast.base import distributed
from ptl_fast.base.checksums import LIST
from ptl_fast.base.stored import (
    COPIES,
    FilledFolder,
    JsonFile,
    MarkedFolder,
    ModelFolder,
    Stored,
    TensorFile,
    TwiceStored,
    remove,
    rename,
)

LOCK = ".lock"
# What is read of these files, which so must be there: base/stored.py.
SIZE = ("num_parameters", "num_layers", "width", "flops_per_token", "eval")
RECOVERY = ("recovery_tokens", "recovery_steps")
RECORD = (*SIZE, *RECOVERY, "round", "kind", "seconds", "eval_pruned", "dropped_layers")
PLAN = ("round", "kind", "scorer", "width", "num_layers", "kept_neurons")
SECONDS = ("calibrate", "compact", "recover", "evaluate")
SUMMARY = ("asked", "finished", "judged", "right", "kept", "mean_tokens", "seconds", "sha256")
# what a run killed before its first state.json leaves: such a folder counts as empty
BEFORE_STATE = {LOCK, "state.json.tmp", LIST, COPIES}
# What a run writes at the top of its folder, besides LOCK: --overwrite deletes these and nothing
# else, as the folder may hold files of the user's.
WRITTEN = re.compile(
    r"(round-\d{2,}(\.failed-\d+)?|final(\.tmp|\.changed-\d+)?|log|traces|sizes"
    rf"|{re.escape(LIST)}|{COPIES}"
    r"|(state|dense|dense_answers|decisions|width_multiple|report)\.json(\.tmp)?|report\.(md|html)(\.tmp)?)"
)


class Checkpoint(MarkedFolder):
    """A checkpoint of transformers' Trainer, and what we add to it."""

    @property
    def step(self) -> int:
        """Number of optimizer steps before it."""
        return int(self.path.name.rsplit("-", 1)[1])

    @property
    def statistics(self) -> Stored:
        """Statistics for the next round's scores so far, as torch.save writes them."""
        return Stored(self.path / "watched.pt")

    @property
    def is_of_deepspeed(self) -> bool:
        """Whether DeepSpeed wrote it, in files of its own."""
        return any(self.path.glob("global_step*"))

    @property
    def num_shards(self) -> int:
        """Over how many ranks ZeRO has divided the optimizer state; 0 if it is whole."""
        # names differ by stage and type, and end alike
        return len(list(self.path.glob("global_step*/*_optim_states.pt")))

    @property
    def closing(self) -> JsonFile:
        """The state of early stopping (token_budget.ClosingPhase)."""
        return JsonFile(self.path / "closing.json")


@dataclass(frozen=True)
class RecoveryFolder:
    """What a recovery keeps while it trains, so that a killed one goes on: ``RecoveryFolder(path)``
    for a recovery without a run. The folder need not exist.
    """

    path: Path

    def method(self, name: str) -> "RecoveryFolder":
        """The folder of one of several methods that train one after another."""
        return RecoveryFolder(self.path / name)

    @property
    def finished(self) -> MarkedFolder:
        """The folder itself, once its method is finished while others are still to come. It then
        holds ``weights`` and ``result``.
        """
        return MarkedFolder(self.path)

    @property
    def weights(self) -> Stored:
        """A finished method's {parameter name: tensor}, as torch.save writes it."""
        return Stored(self.path / "weights.pt")

    @property
    def result(self) -> JsonFile:
        """A finished method's RecoveryResult, without optimizer state."""
        return JsonFile(self.path / "result.json")

    @property
    def teacher(self) -> Path:
        """The folder of the teacher's predictions."""
        return self.path / "teacher"

    def teacher_part(self, number: int) -> TensorFile:
        """The teacher's predictions for some of the sequences."""
        return TensorFile(self.teacher / f"part-{number:05d}.safetensors")

    @property
    def start(self) -> ModelFolder:
        """The model that training starts from, where another program loads it."""
        return ModelFolder(self.path / "start")

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint after so many optimizer steps; transformers gives it its name."""
        return Checkpoint(self.path / f"checkpoint-{step}")

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest complete checkpoint, None if there is none; the same on all ranks."""
        # asked on each rank alone, as ranks may see different folders; then the main rank's answer
        steps = [each.step for each in self._checkpoints() if each.is_whole()]
        newest = distributed.agree(max(steps, default=None))
        return self.checkpoint(newest) if newest is not None else None

    def remove_checkpoints(self, but: Checkpoint) -> None:
        """Delete all checkpoints but one, on the main rank."""
        remove(*(each.path for each in self._checkpoints() if each != but))

    def _checkpoints(self) -> list[Checkpoint]:
        return [Checkpoint(path) for path in self.path.glob("checkpoint-*")]


@dataclass(frozen=True)
class TraceFolder:
    """A model's own answers to the questions of some lists of documents, called sources:
    ``TraceFolder(path)`` for answers without a run. The folder need not exist.
    """

    path: Path

    def part(self, source: int, number: int) -> Stored:
        """The answers to some of a source's documents, a JSON object a line."""
        return Stored(self.path / f"{source:02d}-{number:05d}.jsonl")

    def parts(self) -> list[Path]:
        """The files of all parts, as this rank sees them."""
        return sorted(self.path.glob("*.jsonl"))

    @property
    def summary(self) -> JsonFile:
        """How many were asked, right, kept; once it exists the answers are whole."""
        return JsonFile(self.path / "summary.json", SUMMARY)


@dataclass(frozen=True)
class StreamedFolder:
    """A checkpoint that is written layer by layer, and complete once it has its index:
    ``StreamedFolder(path)`` for one without a run.
    """

    path: Path

    def shard(self, index: int, total: int) -> TensorFile:
        """A shard: those of the layers come first, in order."""
        return TensorFile(self.path / f"model-{index + 1:05d}-of-{total:05d}.safetensors")

    def choice(self, number: int) -> TensorFile:
        """What was decided in a layer."""
        return TensorFile(self.path / "choices" / f"layer-{number:05d}.safetensors")

    @property
    def index(self) -> JsonFile:
        """Which tensor is in which shard."""
        return JsonFile(self.path / "model.safetensors.index.json", ("weight_map",))

    @property
    def states(self) -> Path:
        """The folder of the hidden states, while layers are walked."""
        return self.path / "states"

    def is_complete(self) -> bool:
        """Whether it has its index, and the shards are as they were written."""
        content = self.index.found()
        if content is None:
            return False
        return all(
            TensorFile(self.path / name).exists() for name in set(content["weight_map"].values())
        )


class RoundFolder:
    """One round's files.

    Extension k of recovery, the k-th that the quality gate asked for, has its own files; extension
    0 is the round's own recovery.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = JsonFile(path / "plan.json", PLAN)
        self.statistics = TensorFile(path / "statistics.safetensors")
        self.token_weights = JsonFile(path / "token_weights.json", ())
        self.folded_layers = JsonFile(path / "folded_layers.json")
        self.pruned = JsonFile(path / "pruned.json", ())
        self.pruned_answers = JsonFile(path / "pruned_answers.json")
        self.worse_recovery = JsonFile(path / "worse_recovery.json", ("eval", "undone"))
        self.seconds = JsonFile(path / "seconds.json", SECONDS)
        self.record = JsonFile(path / "record.json", RECORD)
        self.traces = TraceFolder(path / "traces")
        self.streamed = StreamedFolder(path / "streamed")
        self.trained = StreamedFolder(path / "trained")

    def recovered(self, extension: int = 0) -> JsonFile:
        """The evaluation after training; empty if it diverged."""
        return JsonFile(self.path / f"recovered{_suffix(extension)}.json", ())

    def recovered_answers(self, extension: int = 0) -> JsonFile:
        """The answers of that evaluation."""
        return JsonFile(self.path / f"recovered_answers{_suffix(extension)}.json")

    def recovery(self, extension: int = 0) -> JsonFile:
        """What the training took: tokens, steps, held-out checks."""
        return JsonFile(self.path / f"recovery{_suffix(extension)}.json", RECOVERY)

    def model(self, extension: int = 0) -> ModelFolder:
        """The weights after training."""
        return ModelFolder(self.path / f"model{_suffix(extension)}")

    def optimizer_state(self, extension: int = 0) -> TensorFile:
        """The Adam moments after training."""
        return TensorFile(self.path / f"optimizer{_suffix(extension)}.safetensors")

    def next_statistics(self, extension: int = 0) -> TensorFile:
        """Statistics for the next round's scores, collected during this round's recovery."""
        return TensorFile(self.path / f"next_statistics{_suffix(extension)}.safetensors")

    def recovery_folder(self, extension: int = 0) -> RecoveryFolder:
        """What the training keeps while it goes on."""
        return RecoveryFolder(self.path / f"recovery{_suffix(extension)}")

    def name(self, extension: int = 0) -> str:
        """The name in messages, and of the TensorBoard folder."""
        return f"{self.path.name}{_suffix(extension)}"

    def num_extensions(self) -> int:
        """Number of extensions whose training has ended."""
        return len(list(self.path.glob("recovery-extra-*.json")))

    def keep_extension(self, extension: int) -> None:
        """Give the last extension's weights and tensors the round's own names; 0: no extension.

        Safe to repeat: what was renamed before a crash is skipped. The extensions' JSON files stay.
        """
        if not extension:
            return
        # all renames before the deletion below: a crash in between loses nothing
        for last, own in (
            (self.optimizer_state(extension), self.optimizer_state()),
            (self.next_statistics(extension), self.next_statistics()),
            (self.model(extension), self.model()),
        ):
            rename(last.path, own.path)
        # checkpoints, and the tensors of earlier extensions
        remove(*(path for path in self.path.glob("*-extra-*") if path.suffix != ".json"))


class RunFiles:
    """The files at the top of a run's folder, and its rounds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / LOCK
        self.state_file = TwiceStored(path / "state.json", ("config",))
        self.traces = TraceFolder(path / "traces")
        self.dense = JsonFile(path / "dense.json", SIZE)
        self.dense_answers = JsonFile(path / "dense_answers.json")
        self.decisions = TwiceStored(path / "decisions.json")
        self.width_multiple = TwiceStored(path / "width_multiple.json", ("multiple", "reason"))
        self.report = JsonFile(path / "report.json", ("rounds",))
        self.report_text = path / "report.md"
        self.page = path / "report.html"
        self.final = FilledFolder(path / "final")
        self.sizes = JsonFile(path / "sizes" / "sizes.json")
        self.sizes_text = path / "sizes" / "README.md"
        self.checksums = path / LIST
        self.log = path / "log"
        self.tracked = JsonFile(self.log / "rounds" / "tracked.json", ("run", "logged"))

    def round(self, number: int) -> RoundFolder:
        """The files of round ``number``, from 1."""
        return RoundFolder(self.path / f"round-{number:02d}")

    def size(self, number: int) -> FilledFolder:
        """The result that round ``number`` is."""
        return FilledFolder(self.sizes.path.parent / f"round-{number:02d}")

    def failed(self, number: int, attempt: int) -> RoundFolder:
        """The files of an attempt at a round that the quality gate has undone."""
        return RoundFolder(self.path / f"round-{number:02d}.failed-{attempt}")

    def num_finished_rounds(self) -> int:
        """Number of rounds, from the first on, that have a record."""
        # a later round cannot have a record without the earlier ones
        number = 0
        # by the file alone: a damaged record can be made again
        while distributed.agree(self._has_record(number + 1)):
            number += 1
        return number

    def _has_record(self, number: int) -> bool:
        record = self.round(number).record
        return record.path.exists() or record.is_damaged()

    def changed_final(self) -> Path:
        """Where a final/ that is not as it was written is put aside, under a new name."""
        number = 1
        while (aside := self.path / f"final.changed-{number}").exists():
            number += 1
        return aside


def _suffix(extension: int) -> str:
    """The suffix of an extension's file names; empty for the round's own recovery."""
    return f"-extra-{extension}" if extension else ""
