"""Sandbox a child process from within, before it handles text or code that a model wrote.

- Resource limits: processor time, memory, open files; no file may grow, no process or thread start.
- Landlock (Linux 5.13): no file can be created, changed, removed or executed.
- A seccomp filter (Linux on x86-64 and aarch64): no processes, threads, signals or sockets.
- root's capabilities are dropped.

None of this needs privileges, and none of it can be undone. Reading files stays allowed. Only the
standard library is imported, because such processes start often.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import Any

# Constants of the kernel's interface, which Python's standard library lacks: see prctl(2),
# seccomp(2), landlock(7) and capset(2)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SIGKILL = 9
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_EPERM = 2, 0x7FFF0000, 0x00050001
# BPF instructions, and where struct seccomp_data holds the call's number and the architecture
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
OFFSET_OF_NUMBER, OFFSET_OF_ARCHITECTURE = 0, 4
# calls from this number on are x86-64's x32 variants of the same calls: they would bypass the list
X32_CALLS = 0x40000000
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, LANDLOCK_VERSION = 444, 446, 1
EXECUTE, WRITE_FILE, REFER, TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
REMOVE_AND_MAKE = 0b1_1111_1111 << 4  # of folders, files, devices, sockets, pipes and links
CAPABILITY_VERSION_3 = 0x20080522

# {machine: (audit architecture, system calls that the child has no need of)}. The numbers are from
# the kernel's asm/unistd_64.h and asm-generic/unistd.h.
# fmt: off
FORBIDDEN_CALLS = {
    "x86_64": (
        0xC000003E,
        [
            56, 57, 58, 435,  # clone, fork, vfork, clone3
            62, 200, 234,  # kill, tkill, tgkill
            129, 297, 424,  # rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
            41, 53,  # socket, socketpair
            101, 311,  # ptrace, process_vm_writev
            425,  # io_uring_setup: it can open sockets too
            90, 91,  # chmod, fchmod
            92, 93, 94, 260,  # chown, fchown, lchown, fchownat
            268, 452,  # fchmodat, fchmodat2
        ],
    ),
    "aarch64": (
        0xC00000B7,
        [
            220, 435,  # clone, clone3
            129, 130, 131,  # kill, tkill, tgkill
            138, 240, 424,  # rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
            198, 199,  # socket, socketpair
            117, 271,  # ptrace, process_vm_writev
            425,  # io_uring_setup
            52, 53,  # fchmod, fchmodat
            54, 55,  # fchownat, fchown
            452,  # fchmodat2
        ],
    ),
}
# fmt: on


def restrict(memory_bytes: int, num_open_files: int, cpu_seconds: int | None = None) -> list[str]:
    """Apply all protections to this process, for good.

    Args:
        memory_bytes: limit of the address space.
        num_open_files: limit of open file descriptors.
        cpu_seconds: processor time after which the kernel kills the process; None sets no limit.

    Returns:
        The names of the protections in PROTECTIONS that this system lacks.
    """
    limit_resources(memory_bytes, num_open_files, cpu_seconds)
    if sys.platform != "linux":
        return list(PROTECTIONS)
    libc = ctypes.CDLL(None)
    return [name for name, apply in PROTECTIONS.items() if not apply(libc)]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def limit_resources(memory_bytes: int, num_open_files: int, cpu_seconds: int | None) -> None:
    """Set hard limits of time, memory and files; no file may grow, no process or thread start.

    ``restrict`` explains the arguments.
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
    # the soft limit kills with SIGXCPU, which the process could catch; the hard one with SIGKILL
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def drop_privileges(libc: Any) -> bool:
    """Drop all capabilities, and forbid gaining privileges; return whether both succeeded."""
    # 24 zero bytes: empty effective, permitted and inheritable sets, in two 32-bit halves each
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    dropped = libc.capset(header, ctypes.create_string_buffer(24)) == 0
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and dropped


def forbid_writes(libc: Any) -> bool:
    """Forbid creating, changing, removing and executing files; return whether Landlock did so.

    Needs Linux 5.13. Files that are already open for writing stay writable.
    """
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return False
    # later kernels know more rights; an unknown one would be an error
    rights = (
        EXECUTE
        | WRITE_FILE
        | REMOVE_AND_MAKE
        | (REFER if version >= 2 else 0)
        | (TRUNCATE if version >= 3 else 0)
    )
    # a rule set denies the rights that it handles, except where a rule grants them: there is none
    rules = libc.syscall(
        LANDLOCK_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(rights)), ctypes.c_size_t(8), 0
    )
    if rules < 0:
        return False
    restricted = libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return restricted


def forbid_calls(libc: Any) -> bool:
    """Make FORBIDDEN_CALLS fail with EPERM from here on; return whether the filter is installed."""
    if platform.machine() not in FORBIDDEN_CALLS:
        return False
    architecture, numbers = FORBIDDEN_CALLS[platform.machine()]
    # the program: a foreign architecture is refused, since its numbers mean other calls; then one
    # comparison for the x32 calls and one per forbidden number, each of which jumps to the refusal,
    # the last instruction. BPF jumps are relative: count the instructions that each one skips
    to_refusal = range(len(numbers) + 1, 0, -1)
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
    # struct sock_filter and struct sock_fprog of <linux/filter.h>
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    )
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(instructions), ctypes.addressof(code))
    )
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0


# in this order: without root the other two need PR_SET_NO_NEW_PRIVS, which drop_privileges sets
PROTECTIONS = {
    "privileges": drop_privileges,
    "landlock": forbid_writes,
    "seccomp": forbid_calls,
}
