"""A seccomp filter that lets through the system calls of a program that only computes and reads.

It is a list of what is allowed: a call that nobody thought of, or that a later kernel brings, is
refused (EPERM). What is allowed reads files and the process's own state, and changes this process
alone. Some calls do more than that with other arguments, which the filter looks at (CONDITIONS):
fcntl could have the kernel send signals, prlimit change other processes, open write.
"""

import ctypes
import platform
import struct
from dataclasses import dataclass
from typing import Any

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # the latter: the call fails with errno 1, EPERM
# BPF instructions, and where struct seccomp_data holds the call's number, the architecture and the
# lower half of the first argument; the others follow in steps of 8 bytes (both machines below are
# little-endian)
LOAD, AND, JUMP_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # {machine: audit architecture}

# {call: its numbers on x86-64 and aarch64}, from the kernel's asm/unistd_64.h and
# asm-generic/unistd.h; None where the machine has no such call. x86-64's x32 variants are other
# numbers, and so refused.
# fmt: off
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files: reading, and writing to what is open (standard output and the report's pipe)
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None),
    "select": (23, None), "dup": (32, 23), "dup2": (33, None), "getdents": (78, None),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "readlink": (89, None),
    "umask": (95, 166), "statfs": (137, 43), "fstatfs": (138, 44), "readahead": (187, 213),
    "getdents64": (217, 61), "fadvise64": (221, 223), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69), "preadv2": (327, 286),
    "statx": (332, 291), "close_range": (436, 436), "faccessat2": (439, 439),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233),
    # signals that this process gets, and its timers
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pause": (34, None), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    # time
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "times": (100, 153), "time": (201, None),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    # what it is and where it runs; limits can only be lowered, as its capabilities are gone
    "getpid": (39, 172), "uname": (63, 160), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150),
    "getpgid": (121, 155), "getsid": (124, 156), "getpriority": (140, 141),
    "arch_prctl": (158, None), "setrlimit": (160, 164), "gettid": (186, 178),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getrandom": (318, 278),
    # what the C library does at the start and the end, and for locks
    "sched_yield": (24, 124), "exit": (60, 93), "futex": (202, 98), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "exit_group": (231, 94), "set_robust_list": (273, 99),
    "membarrier": (324, 283), "rseq": (334, 293),
}
# fmt: on


@dataclass(frozen=True)
class Condition:
    """A call that is allowed where ``argument & mask`` is one of some values (32 bits each)."""

    numbers: tuple[int | None, int | None]
    """On x86-64 and aarch64, as in ALLOWED."""

    argument: int
    """Which argument, from 0."""

    values: tuple[int, ...]

    mask: int = 0xFFFFFFFF


# O_WRONLY, O_RDWR, O_CREAT and O_TRUNC, the same on both machines: none of these may be asked for.
# /dev/null cannot be opened for writing either, as Landlock forbids that too.
OPENS_FOR_WRITING = 0o1 | 0o2 | 0o100 | 0o1000
CONDITIONS = {
    # the request's number. TCGETS (is it a terminal?), TIOCGWINSZ, FIONREAD, FIOCLEX, FIONCLEX:
    # others have the kernel send signals (FIOSETOWN) or type into terminals (TIOCSTI)
    "ioctl": Condition((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5451, 0x5450)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: others lock files, or have the kernel
    # send signals (F_SETOWN, F_SETLEASE, F_NOTIFY)
    "fcntl": Condition((72, 25), 1, (0, 1, 2, 3, 1030)),
    # only this process's own limits: process 0
    "prlimit64": Condition((302, 261), 0, (0,)),
    # PR_SET_NAME, PR_GET_NAME, and PR_SET_VMA, by which the C library names its memory
    "prctl": Condition((157, 167), 0, (15, 16, 0x53564D41)),
    "open": Condition((2, None), 1, (0,), OPENS_FOR_WRITING),
    "openat": Condition((257, 56), 2, (0,), OPENS_FOR_WRITING),
}
# One BPF instruction: what it does, how many instructions to skip if a comparison holds, and if it
# does not, and its value.
Instruction = tuple[int, int, int, int]


def forbid(libc: Any) -> bool:
    """Refuse all but ALLOWED and CONDITIONS from here on; return whether the filter holds.

    It cannot be undone. Without root it needs PR_SET_NO_NEW_PRIVS.
    """
    if platform.machine() not in MACHINES:
        return False
    instructions = program(platform.machine())
    # struct sock_filter and struct sock_fprog of <linux/filter.h>
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    )
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(instructions), ctypes.addressof(code))
    )
    installed = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) == 0
    # tried and not believed: without a filter this process may send itself the signal 0, of no
    # effect
    return installed and libc.kill(libc.getpid(), 0) != 0


def program(machine: str) -> list[Instruction]:
    """The filter for a machine in MACHINES, as BPF instructions."""
    column = list(MACHINES).index(machine)
    conditions = [each for each in CONDITIONS.values() if each.numbers[column] is not None]
    numbers = [number for each in ALLOWED.values() if (number := each[column]) is not None]
    # a foreign architecture's numbers mean other calls
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, MACHINES[machine]),
        (RETURN, 0, 0, REFUSE),
    ]
    lines.append((LOAD, 0, 0, NUMBER))
    for condition in conditions:
        lines.extend(_conditional(condition, column))
    # each comparison that holds skips the others and the refusal
    lines.extend(
        (JUMP_EQUAL, len(numbers) - position, 0, number) for position, number in enumerate(numbers)
    )
    return [*lines, (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]


def _conditional(condition: Condition, column: int) -> list[Instruction]:
    """Decide about one call by its argument, and skip all of this for other calls."""
    values = condition.values
    decision = [
        (LOAD, 0, 0, FIRST_ARGUMENT + 8 * condition.argument),
        (AND, 0, 0, condition.mask),
        *((JUMP_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    number = condition.numbers[column]
    assert number is not None
    return [(JUMP_EQUAL, 0, len(decision), number), *decision]
