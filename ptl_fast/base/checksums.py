"""Checksums of what a run has written, so that damage shows where it is read, not in the result.

Each folder of a run has a list, LIST, of what was written into it: files, and whole folders such as
model/. A line is appended before the content gets its name, and another one, "is" true, afterwards.
Killed in between, the name may still belong to the content before, so that both are right until
then. What was never listed, as in a run of an older version, is taken as it is.

Lines also say which run they are of, and in which of its folders: a folder, or a file, that was
copied there from another run or another round is not what this run wrote, however whole it is.

XXH3 (128 bits) tells random damage, not an attacker's; docs/reliability.md has what it costs.
"""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

LIST = "checksums.list"
CHUNK = 2**22  # bytes that are read at a time
# a model card is for people, who may edit it
UNCHECKED = {"README.md", LIST}

Sums = str | dict[str, str] | None
"""Of a file its checksum; of a folder {path in it: checksum}; None: it was deleted."""
FOREIGN = "not this run's"
"""In place of the checksum of what this run did not write: no content has it."""
# folders that get another name: their lists are moved with them
RENAMED = re.compile(r"\.(tmp|failed-\d+)(?=/|$)")


class _Run(NamedTuple):
    folder: Path
    name: str


_held: list[_Run] = []


def hold(folder: Path, run: str | None) -> None:
    """From now on, what lies in ``folder`` was written by the run of this name, or else counts as
    damaged. With None, and for those who only read, every run's is right.
    """
    _held[:] = [] if run is None else [_Run(folder, run)]


def owner(folder: Path) -> str | None:
    """The run that is held and a folder's place in it; None for a folder outside of it."""
    for run in _held:
        if folder.is_relative_to(run.folder):
            place = folder.relative_to(run.folder).as_posix()
            return f"{run.name}/{RENAMED.sub('', place)}"
    return None


def runs_in(folder: Path) -> set[str]:
    """The names of the runs that have written into this folder."""
    return {str(line["of"]).partition("/")[0] for line in _lines(folder / LIST)[0] if "of" in line}


def of_bytes(content: bytes) -> str:
    """The checksum of a file with this content: XXH3, 128 bits, in hexadecimal."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)


def of_path(path: Path) -> Sums:
    """The checksums of a file, or of all files in a folder; None if there is neither."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(path)): of_file(file)
            for file in files
            if file.name not in UNCHECKED
        }
    return of_file(path) if path.is_file() else None


def of_file(file: Path) -> str:
    """The checksum of a file; read again only if its size, its time or its place has changed."""
    status = file.stat()
    return _read(str(file), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(4096)
def _read(file: str, inode: int, size: int, time_ns: int) -> str:
    import xxhash

    hashed, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(CHUNK, max(1, size))))
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            hashed.update(buffer[:count])
    return hashed.hexdigest()


def announce(path: Path, sums: Sums) -> None:
    """List what ``path`` is about to hold; None before it is deleted. Flushed to disk."""
    _append(path, {"name": path.name, "xxh3": sums}, flush=True)


def confirm(path: Path) -> None:
    """List that ``path`` now holds what was announced last, and nothing that it held before."""
    # not flushed: if a power failure loses this line, the content before counts as right too
    _append(path, {"name": path.name, "is": True}, flush=False)


def announce_deletion(path: Path) -> None:
    """As ``announce(path, None)``, for what is listed; for anything else nothing is written."""
    if latest(path) is not None:
        announce(path, None)


def latest(path: Path) -> Sums:
    """What was listed last for ``path``; None if nothing was, or its deletion."""
    sums = (_listed(path) or [None])[-1]
    return None if sums == FOREIGN else sums


def is_whole(path: Path) -> bool:
    """Whether ``path`` exists and holds what is listed for it, if anything is."""
    listed = _listed(path)
    if not path.exists():
        return False
    return not listed or any(_holds(path, sums) for sums in listed)


def is_damaged(path: Path) -> bool:
    """Whether ``path`` is listed as written, and is missing now or holds something else."""
    listed = _listed(path)
    # one that is only announced need not have come to be
    if not listed or listed[-1] is None or (len(listed) > 1 and not path.exists()):
        return False
    return not is_whole(path)


def difference(path: Path) -> Path:
    """The file at or in ``path`` that is missing or holds something else than is listed."""
    sums = latest(path)
    if not isinstance(sums, dict) or not path.exists():
        return path
    found = of_path(path)
    wrong = [name for name in sums if not isinstance(found, dict) or found.get(name) != sums[name]]
    return path / wrong[0] if wrong else path


def _holds(path: Path, sums: Sums) -> bool:
    found = of_path(path)
    # files that somebody has added to a folder do no harm
    if isinstance(found, dict) and isinstance(sums, dict):
        return sums.items() <= found.items()
    return sums is not None and found == sums


def _listed(path: Path) -> list[Sums]:
    """What ``path`` may hold: one entry once it is confirmed, else the last one announced and,
    before it, the one that it replaces (None if there was none); empty if nothing is listed.
    FOREIGN alone for what exists in a list's folder and is not this run's.
    """
    lines, all_readable = _lines(path.parent / LIST)
    own = owner(path.parent)
    of_others = own is not None and any(line.get("of", own) != own for line in lines)
    # such a list has all that was written since the folder was empty
    has_all = own is not None and all_readable and any(line.get("first") for line in lines)
    entries: list[Sums] = []
    for line in lines:
        if line.get("name") != path.name or (of_others and line.get("of") != own):
            continue
        if line.get("is"):
            entries = entries[-1:]
        else:
            entries = [entries[-1] if entries else None, line.get("xxh3")]
    return [FOREIGN] if not entries and (of_others or has_all) and path.exists() else entries


def _lines(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a list, and whether there are no others: those that a crash or damage has left
    unreadable are passed over.
    """
    lines: list[dict[str, Any]] = []
    # a pipe would be waited for
    if not file.is_file():
        return [], True
    written = [line for line in file.read_bytes().splitlines() if line]
    for line in written:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines, len(lines) == len(written)


def _append(path: Path, line: dict[str, Any], flush: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = owner(path.parent)
    if own is not None:
        line["of"] = own
        if _is_first(path.parent):
            line["first"] = True
    # a line of its own also behind one that a crash has cut off
    content = b"\n" + json.dumps(line).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    descriptor = os.open(path.parent / LIST, flags, 0o666)
    try:
        os.write(descriptor, content)
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_first(folder: Path) -> bool:
    """Whether a line is the list's first, and nothing was written into the folder before it."""
    if (folder / LIST).exists():
        return False
    # a lock may be there, and folders of others, such as a trainer's logs
    return not any(each.is_file() and each.name[0] != "." for each in folder.iterdir())
