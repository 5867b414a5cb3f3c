"""Programs that try to get out of the sandbox for generated code, a way out each.

Each leaves in ``got`` the names of what it was allowed to do. ``PARENT`` and ``BYSTANDER`` are the
process that judges the program and another process of the same user, ``FILE`` a file of that
user's. benchmarks/torture/victim.py runs them, and looks whether these are as before.
"""

# Numbers of system calls that the C library has no functions for, on x86-64 and aarch64.
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "execveat": (322, 281),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "landlock_create_ruleset": (444, 444),
    "memfd_create": (319, 279),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "pidfd_open": (434, 434),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "userfaultfd": (323, 282),
}
PRELUDE = f"""\
import ctypes, fcntl, os, platform, resource, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {NUMBERS!r}
got = []
def call(name, *arguments):
    number = NUMBERS[name][platform.machine() == "aarch64"]
    arguments = [each if isinstance(each, bytes) or each is None else ctypes.c_long(each)
                 for each in arguments]
    if libc.syscall(number, *arguments) >= 0:
        got.append(name)
def attempt(name, *arguments):
    if getattr(libc, name)(*arguments) >= 0:
        got.append(name)
def do(name, action):
    try:
        action()
    except (OSError, RuntimeError, ValueError, MemoryError):
        return
    got.append(name)
"""
# A process has the kernel signal the owner of a pipe at input: F_SETOWN 8, F_SETSIG 10, FIOASYNC
# 0x5452, FIOSETOWN 0x8901.
OWN_A_PIPE = """\
import termios
for target in (PARENT, BYSTANDER):
    try:
        reading, writing = os.pipe()
    except OSError:
        break
    do("F_SETOWN", lambda: fcntl.fcntl(reading, 8, target))
    do("FIOSETOWN", lambda: fcntl.ioctl(reading, 0x8901, struct.pack("i", target)))
    do("F_SETOWN_EX", lambda: fcntl.fcntl(reading, 15, struct.pack("ii", 1, target)))
    do("F_SETSIG", lambda: fcntl.fcntl(reading, 10, 9))
    do("FIOASYNC", lambda: fcntl.ioctl(reading, 0x5452, struct.pack("i", 1)))
    try:
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")
    except OSError:
        pass
"""
# kill(PARENT, SIGKILL) by the 32-bit interface, where 37 is kill: numbers mean other calls there.
OTHER_NUMBERS = """\
if platform.machine() == "x86_64":
    import mmap
    if libc.syscall(ctypes.c_long(0x40000000 + 62), PARENT, 9) == 0:
        got.append("x32 kill")
    code = bytes.fromhex("53b825000000bb") + struct.pack("<i", PARENT)
    code += bytes.fromhex("b909000000cd805bc3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 0:
        got.append("i386 kill")
"""
HOSTILE = {
    "signals at input on a pipe": OWN_A_PIPE,
    "signals to processes": """\
for target in (PARENT, BYSTANDER):
    do("kill", lambda: os.kill(target, signal.SIGKILL))
    do("tgkill", lambda: libc.tgkill(target, target, 9) and int("no") or None)
    do("killpg", lambda: os.killpg(os.getpgid(target), signal.SIGKILL))
    do("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(target), signal.SIGKILL))
    do("sigqueue", lambda: libc.sigqueue(target, 9, None) and int("no") or None)
do("all", lambda: os.kill(-1, 0))
""",
    "signals of leases and folders": """\
def opened(path, readable):
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return os.open(readable, os.O_RDONLY)
reading = opened(FILE, os.__file__)
folder = opened(os.path.dirname(FILE), os.path.dirname(os.__file__))
do("F_SETLEASE", lambda: fcntl.fcntl(reading, 1024, fcntl.F_RDLCK))
do("F_NOTIFY", lambda: fcntl.fcntl(folder, 1026, 0x0000003F))
""",
    "other numbers of the same calls": OTHER_NUMBERS,
    "limits of other processes": """\
for target in (PARENT, BYSTANDER):
    for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
        do("prlimit", lambda: resource.prlimit(target, kind, (1, 1)))
""",
    "own limits": """\
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE,
             resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    do("setrlimit", lambda: resource.setrlimit(kind, (2**40, 2**40)))
    do("prlimit", lambda: resource.prlimit(os.getpid(), kind, (2**40, 2**40)))
do("pdeathsig", lambda: libc.prctl(1, 0, 0, 0, 0) and int("no") or None)
""",
    "processors and priorities": """\
for target in (PARENT, BYSTANDER):
    do("affinity", lambda: os.sched_setaffinity(target, {0}))
    do("nice", lambda: os.setpriority(os.PRIO_PROCESS, target, 19))
    do("scheduler",
       lambda: os.sched_setscheduler(target, os.SCHED_IDLE, os.sched_param(0)))
    attempt("syscall", ctypes.c_long({"x86_64": 251, "aarch64": 30}[platform.machine()]),
            ctypes.c_long(1), ctypes.c_long(target), ctypes.c_long(3 << 13))
""",
    "shared memory that stays": """\
for _ in range(6):
    attempt("shmget", 0, ctypes.c_size_t(2**20), 0o1600)
attempt("msgget", 0, 0o1600)
attempt("semget", 0, 250, 0o1600)
do("shm_open", lambda: os.close(os.open("/dev/shm/hostile", os.O_CREAT | os.O_RDWR)))
attempt("mq_open", b"/hostile", 0o102, 0o600, None)
call("memfd_create", b"hostile", 0)
""",
    "namespaces": """\
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x08000000, 0x04000000):
    attempt("unshare", flag)
do("setns", lambda: libc.setns(os.open(f"/proc/{PARENT}/ns/mnt", os.O_RDONLY), 0)
   and int("no") or None)
attempt("chroot", b"/tmp")
attempt("mount", b"none", b"/tmp", b"tmpfs", 0, None)
""",
    "keys of the kernel": """\
call("add_key", b"user", b"hostile", b"x", 1, -4)
call("request_key", b"user", b"hostile", None, -4)
call("keyctl", 0, -4, 1)
""",
    "the kernel's machinery": """\
call("userfaultfd", 0)
call("userfaultfd", 1)
call("bpf", 0, bytes(72), 72)
call("perf_event_open", bytes(112), 0, -1, -1, 0)
call("io_uring_setup", 8, bytes(120))
call("seccomp", 1, 0, bytes(16))
attempt("personality", 0x0040000)
attempt("klogctl", 10, None, 0)
""",
    "other processes' memory": """\
for target in (PARENT, BYSTANDER):
    call("ptrace", 16, target, 0, 0)
    call("ptrace", 0x4206, target, 0, 0)
    call("pidfd_open", target, 0)
    for name in ("mem", "environ", "maps"):
        do(name, lambda: open(f"/proc/{target}/{name}", "rb").read(1))
    do("mem", lambda: os.open(f"/proc/{target}/mem", os.O_RDWR))
    local = (ctypes.c_void_p * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    attempt("process_vm_readv", target, local, 1, local, 1, 0)
    attempt("process_vm_writev", target, local, 1, local, 1, 0)
    do("descriptors", lambda: os.open(f"/proc/{target}/fd/0", os.O_RDONLY))
""",
    "what other processes are given": """\
for target in (PARENT, BYSTANDER):
    for name in ("oom_score_adj", "timerslack_ns", "comm", "coredump_filter", "loginuid"):
        do(name, lambda: os.write(os.open(f"/proc/{target}/{name}", os.O_WRONLY), b"1"))
""",
    "a file's content": """\
for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, 3):
    do("open", lambda: os.open(FILE, flags))
call("openat2", -100, FILE.encode(), struct.pack("QQQ", 1, 0, 0), 24)
do("truncate", lambda: os.truncate(FILE, 0))
do("remove", lambda: os.remove(FILE))
do("rename", lambda: os.rename(FILE, FILE + ".moved"))
do("link", lambda: os.link(FILE, FILE + ".link"))
do("copy", lambda: os.copy_file_range(os.open(FILE, os.O_RDONLY), 1, 10))
""",
    "a file's attributes": """\
do("utime", lambda: os.utime(FILE, (1, 1)))
do("utime of an open file", lambda: os.utime(os.open(FILE, os.O_RDONLY), (1, 1)))
do("setxattr", lambda: os.setxattr(FILE, "user.hostile", b"x"))
do("removexattr", lambda: os.removexattr(FILE, "user.own"))
do("chmod", lambda: os.chmod(FILE, 0o666))
do("fchmod", lambda: os.fchmod(os.open(FILE, os.O_RDONLY), 0o666))
do("chown", lambda: os.chown(FILE, os.getuid(), os.getgid()))
do("flags", lambda: fcntl.ioctl(os.open(FILE, os.O_RDONLY), 0x40086602, struct.pack("l", 0x80)))
do("flock", lambda: fcntl.flock(os.open(FILE, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB))
do("lockf", lambda: fcntl.fcntl(os.open(FILE, os.O_RDONLY), fcntl.F_SETLK,
                                struct.pack("hhlli", 0, 0, 0, 0, 0)))
""",
    "new files": """\
folder = os.path.dirname(FILE)
do("folder", lambda: os.mkdir(folder + "/made"))
do("link", lambda: os.symlink("a", folder + "/made"))
do("pipe", lambda: os.mkfifo(folder + "/made"))
do("device", lambda: os.mknod(folder + "/made", 0o20600, os.makedev(1, 3)))
do("nameless", lambda: os.open(folder, os.O_RDWR | getattr(os, "O_TMPFILE", 0)))
do("file", lambda: open(folder + "/made", "x"))
do("own folder", lambda: open("made", "x"))
""",
    "processes": """\
import subprocess, threading
do("fork", os.fork)
do("vfork", lambda: subprocess.run(["true"]))
do("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
do("thread", threading.Thread(target=print).start)
do("exec", lambda: os.execv("/bin/true", ["true"]))
call("execveat", os.open("/bin/true", os.O_RDONLY), b"", None, None, 0x1000)
call("clone3", bytes(88), 88)
""",
    "the network": """\
import socket
for kind in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
    do("socket", lambda: socket.socket(kind, socket.SOCK_DGRAM))
do("pair", socket.socketpair)
""",
    "privileges": """\
do("setuid", lambda: os.setuid(0 if os.getuid() else 65534))
do("setgroups", lambda: os.setgroups([]))
attempt("capset", struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[2**32 - 1] * 6))
attempt("prctl", 38, 0, 0, 0, 0)
attempt("prctl", 47, 2, 21, 0, 0)
attempt("reboot", 0)
attempt("sethostname", b"hostile", 7)
attempt("sync")
""",
}


def source(name: str, parent: int, bystander: int, file: str) -> str:
    """The program of a name in HOSTILE, against these processes and this file."""
    names = f"PARENT, BYSTANDER, FILE = {parent}, {bystander}, {file!r}\n"
    return PRELUDE + names + HOSTILE[name]
