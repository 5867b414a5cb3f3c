"""What a child process does before it runs what a model wrote: it gives up its rights.

Standard library only, for such a process starts often.

- Resource limits: processor time, memory, open files; no file grows, no process or thread starts.
- Landlock (Linux 5.13): no file is created, changed, removed or executed.
- A seccomp filter (Linux on x86-64 and aarch64): no processes, threads, signals or sockets.
- root's capabilities are dropped.

None of this needs privileges.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any

# prctl(2), seccomp(2), landlock(7), capset(2)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SIGKILL = 9
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_EPERM = 2, 0x7FFF0000, 0x00050001
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
OFFSET_OF_NUMBER, OFFSET_OF_ARCHITECTURE = 0, 4
X32_CALLS = 0x40000000  # x86-64's second set of system calls, which would get around the list
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, LANDLOCK_VERSION = 444, 446, 1
EXECUTE, WRITE_FILE, REFER, TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
REMOVE_AND_MAKE = 0b1_1111_1111 << 4  # folders, files, devices, sockets, pipes, links
CAPABILITY_VERSION_3 = 0x20080522

# {machine: (audit architecture, system calls that a program has no need of)}: new processes and
# threads, signals, sockets, tracing, io_uring (which opens sockets too), owners and permissions of
# files. Source: the kernel's asm/unistd_64.h and asm-generic/unistd.h.
FORBIDDEN_CALLS = {
    "x86_64": (
        0xC000003E,
        [
            56,
            57,
            58,
            435,
            62,
            200,
            234,
            129,
            297,
            424,
            41,
            53,
            101,
            311,
            425,
            90,
            91,
            92,
            93,
            94,
            260,
            268,
            452,
        ],
    ),
    "aarch64": (
        0xC00000B7,
        [220, 435, 129, 130, 131, 138, 240, 424, 198, 199, 117, 271, 425, 52, 53, 54, 55, 452],
    ),
}


def restrict(memory_bytes: int, num_open_files: int, cpu_seconds: int | None = None) -> list[str]:
    """Give up rights that this process has no need of, for good; return the names of the protections
    that this system lacks.

    Args:
        cpu_seconds: processor time after which the kernel ends the process; None sets no limit.
    """
    limit_resources(memory_bytes, num_open_files, cpu_seconds)
    if sys.platform != "linux":
        return list(PROTECTIONS)
    libc = ctypes.CDLL(None)
    return [name for name, apply in PROTECTIONS.items() if not apply(libc)]


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def limit_resources(memory_bytes: int, num_open_files: int, cpu_seconds: int | None) -> None:
    """Time, memory and file limits that cannot be raised again; no file may grow, and no process or
    thread start.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: num_open_files,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def drop_privileges(libc: Any) -> bool:
    """Give up root's capabilities for good."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    dropped = libc.capset(header, ctypes.create_string_buffer(24)) == 0
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and dropped


def forbid_writes(libc: Any) -> bool:
    """No file is created, changed, removed or executed from here on (Landlock, Linux 5.13)."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return False
    rights = (
        EXECUTE
        | WRITE_FILE
        | REMOVE_AND_MAKE
        | (REFER if version >= 2 else 0)
        | (TRUNCATE if version >= 3 else 0)
    )
    # rights that a rule set handles and no rule gives are gone
    rules = libc.syscall(
        LANDLOCK_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(rights)), ctypes.c_size_t(8), 0
    )
    if rules < 0:
        return False
    restricted = libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return restricted


def forbid_calls(libc: Any) -> bool:
    """No process, thread, signal or socket from here on (a seccomp filter)."""
    if platform.machine() not in FORBIDDEN_CALLS:
        return False
    architecture, numbers = FORBIDDEN_CALLS[platform.machine()]
    to_refusal = range(
        len(numbers) + 1, 0, -1
    )  # how many instructions each of the comparisons is before the refusal
    instructions = [
        (LOAD, 0, 0, OFFSET_OF_ARCHITECTURE),
        (JUMP_EQUAL, 0, len(numbers) + 3, architecture),
        (LOAD, 0, 0, OFFSET_OF_NUMBER),
        *(
            (kind, distance, 0, value)
            for (kind, value), distance in zip(
                [(JUMP_AT_LEAST, X32_CALLS), *((JUMP_EQUAL, number) for number in numbers)],
                to_refusal,
                strict=True,
            )
        ),
        (RETURN, 0, 0, SECCOMP_ALLOW),
        (RETURN, 0, 0, SECCOMP_EPERM),
    ]
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    )
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(instructions), ctypes.addressof(code))
    )
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0


PROTECTIONS = {
    "privileges": drop_privileges,
    "landlock": forbid_writes,
    "seccomp": forbid_calls,
}
