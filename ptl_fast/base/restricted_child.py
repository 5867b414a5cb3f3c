"""Sandbox a child process from within, before it handles text or code that a model wrote.

- Resource limits: processor time, memory, open files; no file may grow, no process or thread start.
- Namespaces (where the system lets this user have them): users and System V memory of its own.
- root's capabilities are dropped, and the process's memory is closed to others.
- Landlock (Linux 5.13): no file can be created, changed, removed or executed, no device opened.
- Landlock's scope (Linux 6.12): no signal reaches a process outside, however it is sent.
- A seccomp filter (Linux on x86-64 and aarch64): only the system calls of base/system_calls.py.

None of this needs privileges, and none of it can be undone. Reading files stays allowed. Only the
standard library is imported, because such processes start often.
"""

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from typing import Any

from ptl_fast.base import system_calls

# Constants of the kernel's interface, which Python's standard library lacks: see prctl(2),
# unshare(2), landlock(7) and capset(2)
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 3, 4, 38
SIGKILL = 9
CLONE_NEWUSER, CLONE_NEWIPC = 0x10000000, 0x08000000
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_VERSION, PATH_BENEATH = 1, 1  # a flag of the first, a kind of rule of the second
# Landlock's rights on files, with the version that brings each
EXECUTE, WRITE_FILE, READ_FILE = 1 << 0, 1 << 1, 1 << 2
REMOVE_AND_MAKE = 0b1_1111_1111 << 4  # of folders, files, devices, sockets, pipes and links
LATER_RIGHTS = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # moving, truncating, requests to devices
BIND_AND_CONNECT = 0b11  # of TCP sockets, version 4
VERSION_OF_NETWORK, VERSION_OF_SCOPES = 4, 6
ABSTRACT_SOCKETS, SIGNALS = 1 << 0, 1 << 1  # scopes: nothing outside this process is reached
CAPABILITY_VERSION_3 = 0x20080522
# Devices do things when they are merely opened: a watchdog restarts the machine, a terminal gives
# away what its user types.
DEVICES = "/dev"
HARMLESS_DEVICES = ("null", "zero", "random", "urandom")
# Where a Python that computes reads: libraries, and what they ask the system.
SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")
# Not all of /etc: root may read the passwords there, and keys.
SYSTEM_FILES = tuple(
    f"/etc/{name}"
    for name in (
        "group",
        "ld.so.cache",
        "localtime",
        "mime.types",
        "nsswitch.conf",
        "os-release",
        "passwd",
        "ssl/openssl.cnf",
        "timezone",
    )
)
PACKAGES = ("site-packages", "dist-packages")


def restrict(memory_bytes: int, num_open_files: int, cpu_seconds: int | None = None) -> list[str]:
    """Apply all protections to this process, for good.

    Args:
        memory_bytes: limit of the address space.
        num_open_files: limit of open file descriptors.
        cpu_seconds: processor time after which the kernel kills the process; None sets no limit.

    Returns:
        The names of the protections in PROTECTIONS that this system lacks. Each was tried after it
        was applied: one that the kernel grants and does not keep is named too.
    """
    limit_resources(memory_bytes, num_open_files, cpu_seconds)
    return protect(list(PROTECTIONS))


def protect(names: Sequence[str]) -> list[str]:
    """Apply those of PROTECTIONS, for good; return the names of those that this system lacks."""
    if sys.platform != "linux":
        return list(names)
    libc = ctypes.CDLL(None)
    return [name for name in names if not PROTECTIONS[name](libc)]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def confine_reading() -> None:
    """Let this process open no more files than Python's own and the system's, where Landlock is:
    neither data nor what belongs to users. To be called before ``restrict``.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    # a user other than root may restrict only what gains no privileges
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _landlock_version(libc) >= 1:
        _landlock(
            libc, READ_FILE, 0, readable=[*SYSTEM, *SYSTEM_FILES, *_python(), *_harmless_devices()]
        )


def _python() -> list[str]:
    """The folders of this Python and of the packages that it finds."""
    packages = [path for path in sys.path if os.path.basename(path) in PACKAGES]
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__), *packages]


def _harmless_devices() -> list[str]:
    return [os.path.join(DEVICES, name) for name in HARMLESS_DEVICES]


def limit_resources(memory_bytes: int, num_open_files: int, cpu_seconds: int | None) -> None:
    """Set hard limits of time, memory and files; no file may grow, no process or thread start.

    ``restrict`` explains the arguments.
    """
    limits = {
        "AS": memory_bytes,
        "NOFILE": num_open_files,
        # memory that the address space does not count: locked pages, queues of messages
        **dict.fromkeys(("FSIZE", "NPROC", "CORE", "MEMLOCK", "MSGQUEUE"), 0),
    }
    for name, limit in limits.items():
        # not every system has each
        if hasattr(resource, f"RLIMIT_{name}"):
            _lower(getattr(resource, f"RLIMIT_{name}"), limit, limit)
    # the soft limit kills with SIGXCPU, which the process could catch; the hard one with SIGKILL
    if cpu_seconds is not None:
        _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit of this process, which stays as it is where it is lower already: an ordinary user
    may not raise a hard one (ulimit).
    """
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def leave_namespaces(libc: Any) -> bool:
    """Give this process users and System V objects of its own; return whether it has them.

    Memory of shmget, which outlives a process, then ends with this one. Process ids stay the
    system's: others would need one more process, and Landlock and seccomp let no signal out.
    """
    user, group = os.geteuid(), os.getegid()
    before = _namespace("ipc")
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWIPC) == 0:
        # the user's and the group's ids inside are as outside
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            _write_about_self(name, text)
    else:
        # without users of its own only root may
        libc.unshare(CLONE_NEWIPC)
    return before is not None and _namespace("ipc") != before


def drop_privileges(libc: Any) -> bool:
    """Drop all capabilities, forbid gaining privileges, and close this process's memory to others
    of its user, also where Landlock does not; return whether all of it succeeded.
    """
    # 24 zero bytes: empty effective, permitted and inheritable sets, in two 32-bit halves each
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    dropped = libc.capset(header, ctypes.create_string_buffer(24)) == 0
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    closed = libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and dropped and closed


def forbid_writes(libc: Any) -> bool:
    """Forbid creating, changing, removing and executing files, and opening devices; return whether
    Landlock did so.

    Needs Linux 5.13. Files that are already open for writing stay writable.
    """
    version = _landlock_version(libc)
    rights = EXECUTE | WRITE_FILE | READ_FILE | REMOVE_AND_MAKE
    # later kernels know more rights; an unknown one would be an error
    for since, right in LATER_RIGHTS.items():
        rights |= right if version >= since else 0
    network = BIND_AND_CONNECT if version >= VERSION_OF_NETWORK else 0
    if version < 1 or not _landlock(libc, rights, network, readable=_readable()):
        return False
    with contextlib.suppress(OSError):
        os.close(os.open(os.devnull, os.O_WRONLY))
        return False
    return True


def forbid_signals(libc: Any) -> bool:
    """Forbid signals to processes outside, also those that the kernel sends for this process, as
    at input on a pipe that it owns; return whether Landlock did so. Needs Linux 6.12.
    """
    scopes = ABSTRACT_SOCKETS | SIGNALS
    if _landlock_version(libc) < VERSION_OF_SCOPES or not _landlock(libc, 0, 0, scopes):
        return False
    # signal 0 only asks whether a signal may be sent
    return libc.kill(os.getppid(), 0) != 0


# In this order: without root Landlock and seccomp need PR_SET_NO_NEW_PRIVS, which drop_privileges
# sets; namespaces need capabilities, or the right to write about oneself; and the filter would
# refuse all the others.
PROTECTIONS = {
    "namespaces": leave_namespaces,
    "privileges": drop_privileges,
    "landlock": forbid_writes,
    "signal scope": forbid_signals,
    "seccomp": system_calls.forbid,
}


def _namespace(kind: str) -> str | None:
    """The name of this process's namespace of a kind; None if it cannot be told."""
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return None


def _write_about_self(name: str, text: str) -> None:
    """Write a file of this process in /proc: it needs no room, and no limit on sizes counts."""
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _landlock_version(libc: Any) -> int:
    """The kernel's version of Landlock; 0 or less if it has none."""
    return libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)


def _readable() -> list[str]:
    """Where files may be read: everywhere but among devices, save for what Python lies in."""
    top = [os.path.join("/", name) for name in os.listdir("/")]
    own = [os.path.abspath(path) for path in (*sys.path, sys.prefix, sys.base_prefix)]
    own = [path for path in own if path.startswith(f"{DEVICES}/")]
    return [path for path in top if path != DEVICES] + own + _harmless_devices()


def _landlock(
    libc: Any, rights: int, network: int, scopes: int = 0, readable: Sequence[str] = ()
) -> bool:
    """Deny rights on files and on the network, and confine scopes; return whether it is done.

    Args:
        readable: files and folders where READ_FILE is granted, if it is among the rights.
    """
    # struct landlock_ruleset_attr, as long as what it sets: older kernels know its beginning. A
    # rule set denies the rights that it handles, except where a rule grants them
    values = [rights, network, scopes]
    while not values[-1]:
        values.pop()
    attributes = struct.pack(f"={len(values)}Q", *values)
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    for path in readable:
        _grant_reading(libc, rules, path)
    restricted = libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return restricted


def _grant_reading(libc: Any, rules: int, path: str) -> None:
    """Let files at or below ``path`` be read. What cannot be opened is not read anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # struct landlock_path_beneath_attr, which is packed
        rule = struct.pack("=Qi", READ_FILE, descriptor)
        libc.syscall(LANDLOCK_ADD_RULE, rules, PATH_BENEATH, rule, 0)
        os.close(descriptor)
