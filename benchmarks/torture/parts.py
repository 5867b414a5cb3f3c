"""The parts of the torture: a kind of fault each, as cases that each come to an outcome."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.environment import ROOT
from benchmarks.torture import child, commands, programs, spoilt
from benchmarks.torture.child import Fault
from benchmarks.torture.trial import RUNS, Inputs, empty, fault_of, result, shuffled

SAME, LINE = "the undisturbed result", "one line"
# of what ranks told before they were lost: torchrun's summary comes last, and is 1,000 long
TOLD = 6000
NUM_RANDOM_KILLS, NUM_RANK_KILLS, NUM_COMMAND_KILLS = 100, 20, 10
SECONDS_OF_AN_INPUT = 60.0


@dataclass(frozen=True)
class Case:
    """One fault, and what it came to."""

    label: str
    outcome: str
    """SAME, LINE, or what was lost."""


@dataclass
class Bench:
    """Where cases run, and what they are compared with."""

    inputs: Inputs
    folder: Path
    """Of the run at work."""

    seed: int
    num_inputs: int
    undisturbed: dict[str, tuple[str, int, float]] = field(default_factory=dict)
    """{kind of run: (its result, its changes of its folder, its seconds)}."""

    def whole(self, kind: str) -> tuple[str, int, float]:
        """An undisturbed run's result, number of changes and seconds."""
        if kind not in self.undisturbed:
            start = time.monotonic()
            ended = child.run(self.inputs.flags(kind), empty(self.folder))
            found = result(self.folder)
            if not found or ended.code:
                raise RuntimeError(f"{kind} does not run: {ended.told[-2000:]}")
            seconds = time.monotonic() - start
            self.undisturbed[kind] = found, ended.num_changes, seconds
        return self.undisturbed[kind]

    def finish(self, kind: str, before: child.Ended | None = None) -> str:
        """Give the same command again after a fault, and say what it came to."""
        if before is not None and before.code != -9 and (wrong := fault_of(before)):
            return wrong
        ended = child.run(self.inputs.flags(kind), self.folder)
        if wrong := fault_of(ended):
            return wrong
        if ended.code:
            return f"{LINE}: {ended.told.strip().splitlines()[-1]}"
        return SAME if result(self.folder) == self.whole(kind)[0] else "another result"


@dataclass(frozen=True)
class Part:
    """A kind of fault."""

    fault: str
    how: str
    cases: Callable[[Bench], Iterator[Case]]
    share: float
    """Of the time: in proportion to the other parts'."""
    allowed: frozenset[str] = frozenset({SAME})


def kills(bench: Bench) -> Iterator[Case]:
    """A kill at every change of the folder."""
    for kind, moment in _moments(bench):
        ended = child.run(bench.inputs.flags(kind), empty(bench.folder), Fault("kill", moment))
        yield Case(f"{kind}, change {moment}", bench.finish(kind, ended))


def random_kills(bench: Bench) -> Iterator[Case]:
    """A kill after random seconds, several times until the run gets through."""
    generator = random.Random(bench.seed)
    for number in range(NUM_RANDOM_KILLS):
        kind = list(RUNS)[number % len(RUNS)]
        seconds = bench.whole(kind)[2]
        empty(bench.folder)
        fault = Fault("kill", seconds=generator.uniform(0.05, 1) * seconds)
        ended = child.run(bench.inputs.flags(kind), bench.folder, fault)
        yield Case(f"{kind}, after {fault.seconds:.2f} s", bench.finish(kind, ended))


def ranks(bench: Bench) -> Iterator[Case]:
    """A kill of both of two ranks after random seconds."""
    generator, given = random.Random(bench.seed), bench.inputs.flags("distill")
    start = time.monotonic()
    child.run_ranks(given, empty(bench.folder))
    whole, seconds = result(bench.folder), time.monotonic() - start
    if not whole:
        raise RuntimeError("two ranks do not run")
    for _ in range(NUM_RANK_KILLS):
        after = generator.uniform(0.4, 1) * seconds
        child.run_ranks(given, empty(bench.folder), after)
        ended = child.run_ranks(given, bench.folder)
        same = SAME if result(bench.folder) == whole else "another result"
        yield Case(f"after {after:.1f} s", same if ended.code == 0 else ended.told[-TOLD:])


def command_kills(bench: Bench) -> Iterator[Case]:
    """Kills of commands that read a finished run: at every change of a file, and at random."""
    child.run(bench.inputs.flags("cpt"), empty(bench.folder))
    commands.make_tools(bench.folder)
    generator = random.Random(bench.seed)
    for name, words_of in commands.COMMANDS.items():
        empty(bench.folder / "made")
        words, start = words_of(bench.folder), time.monotonic()
        ended, whole = child.run_command(words, bench.folder), commands.contents(bench.folder)
        seconds = time.monotonic() - start
        if ended.code:
            raise RuntimeError(f"{name} does not run: {ended.told[-2000:]}")
        faults = [Fault("kill", moment + 1) for moment in range(ended.num_changes)]
        faults += [
            Fault("kill", seconds=generator.uniform(0.05, 1) * seconds)
            for _ in range(NUM_COMMAND_KILLS)
        ]
        for fault in faults:
            yield Case(f"{name}, {fault}", _killed(bench.folder, words, fault, whole))


def _killed(folder: Path, words: list[str], fault: Fault, whole: dict[str, bytes]) -> str:
    """What a kill of a command, and the same command after it, come to.

    Args:
        whole: the folder's files after an undisturbed one.
    """
    empty(folder / "made")
    child.run_command(words, folder, fault)
    half = [
        name
        for name, content in commands.contents(folder).items()
        if name.startswith(("run/", "made/")) and content != whole.get(name)
    ]
    if half:
        return f"half of {', '.join(half)}"
    ended = child.run_command(words, folder)
    left = [file.name for file in (folder / "made").glob("*.tmp")]
    if ended.code or left:
        return f"exit code {ended.code}, left {left}: {ended.told[-300:]}"
    found = commands.contents(folder)
    return SAME if found == {**whole, "changes": found["changes"]} else "another result"


def storage(bench: Bench) -> Iterator[Case]:
    """The disk is full, or broken, from some change of the folder on."""
    for kind, moment in _moments(bench):
        for name in child.FAULTS:
            ended = child.run(bench.inputs.flags(kind), empty(bench.folder), Fault(name, moment))
            told = "it went on as if nothing were wrong" if ended.code == 0 else ""
            # the last changes of all are deletions of what is no longer needed
            gone = told if told and result(bench.folder) != bench.whole(kind)[0] else ""
            yield Case(f"{kind}, {name} at change {moment}", gone or bench.finish(kind, ended))


def damage(bench: Bench) -> Iterator[Case]:
    """A byte flipped, and half of the file gone, in each file of a run that is finished, and of one
    that was killed in its second round.
    """
    generator, cases = random.Random(bench.seed), []
    for kind, state in itertools.product(("optimizer state", "guard"), ("finished", "killed")):
        moment = 0 if state == "finished" else bench.whole(kind)[1] * 3 // 5
        child.run(bench.inputs.flags(kind), empty(bench.folder), Fault("kill", moment))
        kept = bench.folder.with_name(f"{kind}, {state}")
        shutil.copytree(bench.folder, kept)
        files = [file for file in sorted((kept / "run").rglob("*")) if file.is_file()]
        # TensorBoard's logs are nobody's input, and an empty file has no byte to flip
        files = [file for file in files if "log" not in file.parts and file.stat().st_size]
        cases += [(kind, kept, file, how) for file in files for how in ("flip", "cut")]
    for kind, kept, file, how in shuffled(cases, bench.seed):
        shutil.rmtree(bench.folder)
        shutil.copytree(kept, bench.folder)
        own = bench.folder / file.relative_to(kept)
        spoilt.spoil_bytes(own, how, generator)
        yield Case(f"{kept.name}: {how} {file.relative_to(kept / 'run')}", bench.finish(kind))


def models(bench: Bench) -> Iterator[Case]:
    """Model folders with changed files."""
    generator = random.Random(bench.seed)
    for _ in range(bench.num_inputs):
        changed = bench.folder.with_name("changed")
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(bench.inputs.folder / "model", changed)
        label = spoilt.spoil_model(changed, generator)
        yield Case(label, _told(bench, bench.inputs.flags("cpt", model=changed)))


def data_files(bench: Bench) -> Iterator[Case]:
    """Data files with changed bytes, rows and values."""
    generator = random.Random(bench.seed)
    for _ in range(bench.num_inputs):
        changed = bench.folder.with_name("changed.jsonl")
        shutil.copy(bench.inputs.folder / "data.jsonl", changed)
        label = spoilt.spoil_rows(changed, generator)
        yield Case(label, _told(bench, bench.inputs.flags("cpt", data=changed)))


def flags(bench: Bench) -> Iterator[Case]:
    """Flags with values that nobody expects, on the command line and in a settings file."""
    generator = random.Random(bench.seed)
    for number in range(bench.num_inputs):
        name, value = spoilt.odd_flag(generator)
        if number % 2:
            file = bench.folder.with_name("settings.yaml")
            file.write_text(spoilt.as_yaml(name, value, generator))
            changed: dict[str, object] = {"config": file}
        else:
            changed = {name: value}
        given = bench.inputs.flags("cpt", **changed)
        yield Case(f"{name}={value[:60]!r}", _told(bench, [*given, "--dry-run"]))


def hostile(bench: Bench) -> Iterator[Case]:
    """Programs that try to get out of the sandbox."""
    for name in programs.HOSTILE:
        command = [sys.executable, "-m", "benchmarks.torture.victim", name]
        command.append(str(empty(bench.folder)))
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        found = json.loads(done.stdout) if done.returncode == 0 else {"refused": False}
        refused = found == {"refused": True, "changed": []}
        user = "root" if os.geteuid() == 0 else "an ordinary user"
        yield Case(f"{name} as {user}", "refused" if refused else f"let through: {found}")


def _moments(bench: Bench) -> list[tuple[str, int]]:
    """All changes of the folder of all runs, (kind, number from 1), in an order of the seed's."""
    every = [(kind, moment + 1) for kind in RUNS for moment in range(bench.whole(kind)[1])]
    return shuffled(every, bench.seed)


def _told(bench: Bench, given: list[str]) -> str:
    """What a command comes to that may be refused."""
    ended = child.run(given, empty(bench.folder), timeout=SECONDS_OF_AN_INPUT)
    return fault_of(ended) or (LINE if ended.code else "it ran")


ALSO_LINE = frozenset({SAME, LINE})
INPUTS = frozenset({LINE, "it ran"})
PARTS = {
    "kills": Part(
        "a kill at a change of the run's folder",
        "SIGKILL at the audit event before it; then the same command",
        kills,
        share=24,
    ),
    "random-kills": Part(
        "a kill at a random moment", "SIGKILL; then the same command", random_kills, share=10
    ),
    "ranks": Part(
        "a kill of two ranks (torchrun) at a random moment",
        "SIGKILL of all of their processes; then the same command",
        ranks,
        share=14,
    ),
    "commands": Part(
        "a kill of `export`, `compare`, `report` or `inspect`",
        "SIGKILL before each change of a file, and at random moments; then the same command",
        command_kills,
        share=3,
    ),
    "storage": Part(
        "a disk that is full (ENOSPC) or broken (EIO)",
        "every opening, rename and deletion from a change of the folder on; then the same command",
        storage,
        share=24,
    ),
    "damage": Part(
        "a byte flipped, and half of the file gone, in a file of a finished or killed run",
        "the same command",
        damage,
        share=10,
        allowed=ALSO_LINE,
    ),
    "models": Part(
        "changed config.json, index, tokenizer, weights",
        "a seeded mutation",
        models,
        share=12,
        allowed=INPUTS,
    ),
    "data": Part("changed data files", "a seeded mutation", data_files, share=10, allowed=INPUTS),
    "flags": Part(
        "odd values of flags, also in YAML", "seeded; a dry run", flags, share=7, allowed=INPUTS
    ),
    "programs": Part(
        "hostile programs in the sandbox",
        "[programs](../benchmarks/torture/programs.py)",
        hostile,
        share=1,
        allowed=frozenset({"refused"}),
    ),
}
