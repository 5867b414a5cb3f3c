"""What becomes of a run whose folder is damaged: where it goes on, and what it makes again.

Stages whose results are missing or damaged run again; base/stored.py sees to that. Here is what
that is not enough for: the weights of a finished round, which need another round's to be computed
again, and records, which are made from other files.
"""

import functools
from typing import TYPE_CHECKING, Any

from ptl_fast.base import checksums, distributed
from ptl_fast.base.console import say
from ptl_fast.base.stored import DAMAGED, Stored, remove
from ptl_fast.run import records
from ptl_fast.run.quality_gate import Decision

if TYPE_CHECKING:
    from ptl_fast.base.run_files import RoundFolder
    from ptl_fast.run.context import RunContext
    from ptl_fast.run.folder import RunFolder


def usable_rounds(folder: "RunFolder", keeps_optimizer_state: bool) -> int:
    """How many of the finished rounds stay finished. Nothing is written.

    One fewer than there are where the newest one's weights are damaged and those before it are
    whole: that round is then computed again.

    Raises:
        ValueError: more than one round would have to be computed again; says how to have that.
    """
    finished = folder.num_finished_rounds()
    if not finished or _has_result_of(folder, finished):
        return finished
    wrong = _lacks(folder.round(finished), False)
    if wrong is None:
        return finished
    newest = finished - 1
    while newest and _lacks(folder.round(newest), keeps_optimizer_state) is not None:
        newest -= 1
    start = f"round {newest}" if newest else "the original model"
    what = f"{checksums.difference(wrong.path)} {DAMAGED}"
    if newest == finished - 1:
        say(f"{what}: round {finished} is computed again, from {start}.")
        return newest
    folders = ", ".join(str(folder.round(each).path) for each in range(newest + 1, finished + 1))
    raise ValueError(
        f"{what}. The newest weights that are whole are those of {start}: to compute the rounds"
        f" after it again, delete {folders}, and give the same command"
    )


def _has_result_of(folder: "RunFolder", finished: int) -> bool:
    """Whether final/ is whole, so that no weights are needed any more, and no round after the
    finished ones is lost: a user may have deleted its folder, and is told what that takes.
    """
    if not folder.final.exists():
        return False
    report = folder.report.found() or {}
    return len(report.get("rounds", [])) <= finished


def _lacks(files: "RoundFolder", needs_optimizer_state: bool) -> Stored | None:
    """What of a finished round the next one needs and is not whole; None if nothing."""
    for optional in (files.optimizer_state(), files.next_statistics()):
        if optional.is_damaged():
            return optional
    if needs_optimizer_state and not files.optimizer_state().exists():
        return files.optimizer_state()
    model = files.model()
    return None if model.exists() else model


def decisions_until(
    decisions: list[dict[str, Any]], folder: "RunFolder", finished: int
) -> list[dict[str, Any]]:
    """The quality gate's decisions without those on rounds that are computed again.

    Undone attempts at the first of these rounds stay decided: its size follows from them.
    """
    lost = finished + 1
    # a killed run's round may have passed, and have no record yet
    if not _begins_again(folder, lost):
        return decisions
    made = [Decision(**each) for each in decisions]
    kept = [
        number
        for number, each in enumerate(made, start=1)
        if each.round < lost or (each.round == lost and each.undoes)
    ]
    return decisions[: max(kept, default=0)]


def forget_rounds(folder: "RunFolder", finished: int) -> None:
    """Delete what is left of the rounds after ``finished``, if they are computed again."""
    if not distributed.agree(_begins_again(folder, finished + 1)):
        return
    stale = []
    for path in folder.path.glob("round-*"):
        number, _, failed = path.name.removeprefix("round-").partition(".failed-")
        # undone attempts at the first of them still decide its size
        if number.isdigit() and int(number) > finished + bool(failed):
            stale.append(path)
            stale.append(folder.size(int(number)).path)
    remove(*stale)


def _begins_again(folder: "RunFolder", number: int) -> bool:
    """Whether an unfinished round is one that was finished, or one that a user deleted."""
    files = folder.round(number)
    return files.record.path.exists() or not files.path.exists()


def read_records(context: "RunContext", finished: int) -> list[dict[str, Any]]:
    """The records of the finished rounds; a damaged one is made again from the round's files.

    Raises:
        ValueError: one of those is damaged too.
    """
    found = []
    for number in range(1, finished + 1):
        files = context.folder.round(number)
        found.append(files.record.once(functools.partial(records.of_round, context, files)))
    return found
