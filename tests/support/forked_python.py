"""An interpreter that begins at once: commands of Python in processes that are forked from one that
has imported the libraries which nearly all of ours do.

A command has a process, arguments, variables, working folder, streams and an exit code of its own,
and imports this project's modules itself. What is about the start of Python, or about what is
imported, starts Python itself.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.processes import PRELOADED, forget_the_preloaded

OWN = ("ptl_fast", "ptl_kernels", "benchmarks", "support")
# What stands in for python: it sends what it was given, and ends as its command does. Being asked
# to end, it asks its command; should it be killed, so is its command.
CLIENT = """\
import array, os, signal, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = [os.getcwd(), str(len(sys.argv) - 1), *sys.argv[1:]]
words += [name + "=" + value for name, value in os.environ.items()]
content = b"\\0".join(map(os.fsencode, words))
server.sendmsg(
    [struct.pack("<I", len(content))],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))],
)
server.sendall(content)
(process,) = struct.unpack("<i", server.recv(4))
signal.signal(signal.SIGTERM, lambda *_: os.kill(process, signal.SIGTERM))
(code,) = struct.unpack("<i", server.recv(4) or struct.pack("<i", 1))
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def forked_python() -> Iterator[Path]:
    """A program that is called as ``python`` is: ``-m MODULE``, ``-c CODE``, ``-`` or a script, and
    their arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has at most 100 characters
        program, address = _client(Path(folder)), f"{folder}/server"
        server = context.Process(target=_serve, args=(address,))
        server.start()
        while server.is_alive() and not Path(address).exists():
            time.sleep(0.01)
        try:
            yield program
        finally:
            server.kill()
            server.join()


def _client(folder: Path) -> Path:
    client, program = folder / "client.py", folder / "python"
    client.write_text(CLIENT.format(address=f"{folder}/server"))
    # -S and -E: without site-packages it begins in 20 ms
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{client}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def _serve(address: str) -> None:
    """Fork a process for each that connects, until killed."""
    forget_the_preloaded()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                break
            client.close()
            with contextlib.suppress(ChildProcessError):  # those that have ended
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    _see_to(client)


def _see_to(client: socket.socket) -> None:
    """Fork the command of one client and tell how it ended."""
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as received:
        words = received.read(*struct.unpack("<I", size)).split(b"\0")
    folder, number, *rest = map(os.fsdecode, words)
    arguments, variables = rest[: int(number)], rest[int(number) :]
    command = os.fork()
    if command == 0:
        client.close()
        _become(folder, arguments, variables, streams)
        return
    for stream in streams:
        os.close(stream)
    client.sendall(struct.pack("<i", command))
    ended = threading.Event()
    threading.Thread(target=_kill_without, args=(client, command, ended), daemon=True).start()
    _, status = os.waitpid(command, 0)
    ended.set()
    with contextlib.suppress(BrokenPipeError):  # it was killed
        client.sendall(struct.pack("<i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _kill_without(client: socket.socket, command: int, ended: threading.Event) -> None:
    """Kill a command whose client is gone."""
    client.recv(1)
    if not ended.is_set():
        os.kill(command, signal.SIGKILL)


def _become(folder: str, arguments: list[str], variables: list[str], streams: list[int]) -> None:
    """Be what Python would be with these arguments, and end with its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(each, "w", 1, closefd=False) for each in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(each.split("=", 1) for each in variables)
    for name in [each for each in sys.modules if each.split(".")[0] in OWN and each != __name__]:
        del sys.modules[name]
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [folder, *(os.path.abspath(path) for path in own), *sys.path]
    importlib.invalidate_caches()
    kind, *rest = arguments[arguments[0] == "-u" :]  # each line is written at once, anyway
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-", "-c"):
        code = sys.stdin.read() if kind == "-" else rest.pop(0)
        sys.argv = [kind, *rest]
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "<stdin>", "exec"), names)
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")
    sys.exit(0)
