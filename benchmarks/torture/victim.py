"""Run one of benchmarks.torture.programs in the sandbox, and say what has changed outside.

    python -m benchmarks.torture.victim NAME FOLDER [--unprotected]

Prints JSON: {"refused": whether all that the program tried was refused, "changed": what differs
outside afterwards}. Whoever is killed prints nothing. Only the standard library and ptl_fast are
imported: an ordinary user may have no other Python than the system's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.torture import programs
from ptl_fast.evaluation import sandbox

# What a program may do that runs without any protection: the control of these tests.
WITHOUT = (
    "from ptl_fast.base import restricted_child as child\n"
    "child.PROTECTIONS = dict.fromkeys(child.PROTECTIONS, lambda libc: False)\n"
    "child.limit_resources = lambda **limits: None\n"
    "child.confine_reading = lambda: None\n"
)
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=programs.HOSTILE)
    parser.add_argument("folder", type=Path, help="an empty folder of this user's")
    parser.add_argument("--unprotected", action="store_true", help="without the sandbox's rights")
    options = parser.parse_args()
    if options.unprotected:
        path, *rest = sandbox.CHILD.split("\n")
        sandbox.CHILD = "\n".join([path, WITHOUT, *rest])
    print(json.dumps(attack(options.name, options.folder)))


def attack(name: str, folder: Path) -> dict[str, Any]:
    """Run the program; return whether it was refused everything, and what has changed outside."""
    file = folder / "precious"
    file.write_text("data")
    # it ends with whoever holds the other end of its input, should that be killed
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    bystander = subprocess.Popen(waits, stdin=subprocess.PIPE)
    try:
        before = state(bystander, file)
        program = programs.source(name, os.getpid(), bystander.pid, str(file))
        refused = sandbox.passes(program, "assert not got, got")
        after = state(bystander, file)
    finally:
        bystander.kill()
        bystander.wait()
    changed = [what for what in before if before[what] != after[what]]
    return {"refused": refused, "changed": changed}


def state(bystander: "subprocess.Popen[bytes]", file: Path) -> dict[str, Any]:
    """What a program must not change: of two processes, of a file, of the system."""
    stat = file.stat()
    found: dict[str, Any] = {
        "bystander's life": bystander.poll(),
        "content": file.read_bytes(),
        "attributes": [stat.st_mode, stat.st_mtime_ns, stat.st_uid, stat.st_nlink],
        "folder": sorted(os.listdir(file.parent)),
        "extended attributes": os.listxattr(file),
    }
    for kind in ("shm", "msg", "sem"):
        found[kind] = Path(f"/proc/sysvipc/{kind}").read_text().count("\n")
    for owner, process in (("own", os.getpid()), ("bystander's", bystander.pid)):
        found[f"{owner} processors"] = sorted(os.sched_getaffinity(process))
        found[f"{owner} priority"] = os.getpriority(os.PRIO_PROCESS, process)
        found[f"{owner} scheduling"] = os.sched_getscheduler(process)
        found[f"{owner} limits"] = [resource.prlimit(process, kind) for kind in LIMITS]
        found[f"{owner} place"] = Path(f"/proc/{process}/oom_score_adj").read_text()
    return found


if __name__ == "__main__":
    main()
