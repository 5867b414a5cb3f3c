"""Compile every shipped kernel ahead of time, for GPUs that need not be there, and look for
register spills: ``python -m support.kernel_resources`` in tests/.

What the launches of support.kernel_launches would run is recorded, then compiled as Triton would
compile it.
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from support.kernel_launches import CALLS, covering

# What the tools of CUDA call the GPUs that Triton calls 80 and 90.
DISASSEMBLER_NAMES = {80: "SM80", 90: "SM90a"}
INSTRUCTION_BYTES = 16
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may use
REGISTER_FILE = 65536  # registers of a multiprocessor
MATRIX_INSTRUCTIONS = {80: "HMMA", 90: "HGMMA"}
GEMM_KERNELS = ("_dual_gemm_kernel", "_dual_gemm_tma_kernel")
ONLY_ON = {"_dual_gemm_tma_kernel": (90,)}


@dataclass
class Launch:
    """One recorded launch of a kernel, and the GPU (compute capability) it is compiled for."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    variant: str
    arch: int


@dataclass
class Binary:
    """One compiled kernel."""

    log: str
    """What ``ptxas -v`` printed."""
    code: bytes
    """Its instructions."""
    shared: int
    """Bytes of shared memory of a program."""
    num_warps: int


@dataclass
class Row:
    """What one compiled kernel takes: registers, bytes of stack and bytes spilled of a thread,
    bytes of shared memory of a program; and which rules it breaks.
    """

    kernel: str
    arch: int
    variant: str
    registers: int
    shared: int
    stack: int
    spills: int
    problems: list[str]


def judge(
    kernel: str, arch: int, variant: str, log: str, sass: str, shared: int, num_warps: int
) -> Row:
    """Read what ``ptxas -v`` and the disassembler print, and name what breaks a rule."""
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    stack, spills = (
        sum(int(frame[0]) for frame in frames),
        sum(int(frame[1]) + int(frame[2]) for frame in frames),
    )
    problems = [] if registers and frames else ["ptxas reported no registers or no stack frame"]
    if stack or spills:
        problems.append(f"{stack} bytes of stack, {spills} bytes spilled")
    if max(registers, default=0) * num_warps * 32 > REGISTER_FILE:
        problems.append(
            f"{max(registers)} registers x {num_warps * 32} threads exceed {REGISTER_FILE}"
        )
    problems += [
        f"ptxas warns of serialised matrix products ({code})"
        for code in sorted(set(re.findall(r"C751[45]", log)))
    ]
    local = re.findall(r"\b(?:STL|LDL)\b", sass)
    if local:
        problems.append(f"{len(local)} accesses to local memory")
    if not re.search(r"\bEXIT\b", sass):
        problems.append("the disassembler printed no code")
    if kernel in GEMM_KERNELS and not re.search(rf"\b{MATRIX_INSTRUCTIONS[arch]}\b", sass):
        problems.append(f"no {MATRIX_INSTRUCTIONS[arch]} in a matrix product")
    if shared > SHARED_LIMITS[arch]:
        problems.append(f"{shared} bytes of shared memory exceed {SHARED_LIMITS[arch]}")
    return Row(kernel, arch, variant, max(registers, default=0), shared, stack, spills, problems)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    """Instead of launching kernels, list (kernel, args, kwargs)."""
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    run = jit.JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    jit.JITFunction.run = record
    try:
        yield launches
    finally:
        jit.JITFunction.run = run


def all_launches() -> list[Launch]:
    """What to compile: each different specialisation once for each GPU."""
    found: dict[str, Launch] = {}
    for call, choices in CALLS:
        for combination in covering(**choices):
            variant = " ".join(
                f"{name}={_short(value)}"
                for name, value in combination.items()
                if name != "launcher"
            )
            with recorded() as launches:
                call(**combination)
            for (kernel, args, kwargs), arch in itertools.product(launches, (80, 90)):
                if arch in ONLY_ON.get(kernel.__name__, (80, 90)):
                    launch = Launch(kernel, args, kwargs, variant, arch)
                    found.setdefault(f"{kernel.__name__} {arch} {specialised(launch)}", launch)
    return list(found.values())


def specialised(launch: Launch) -> tuple[Any, ...]:
    """(options, signature, constants, attributes) that Triton derives from a launch's arguments."""
    kernel, backend = launch.kernel, make_backend(GPUTarget("cuda", launch.arch, 32))
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, options = bind(*launch.args, **launch.kwargs)
    return kernel._pack_args(backend, launch.kwargs, bound, specialisation, options)


def compiled(launch: Launch) -> Binary:
    """Compile one launch."""
    options, signature, constants, attributes = specialised(launch)
    source, log = ASTSource(launch.kernel, signature, constants, attributes), io.StringIO()
    with contextlib.redirect_stdout(log):
        binary = triton.compile(
            source, target=GPUTarget("cuda", launch.arch, 32), options=options.__dict__
        )
    metadata = binary.metadata
    code = instructions(binary.asm["cubin"])
    return Binary(log.getvalue(), code, metadata.shared, metadata.num_warps)


def instructions(cubin: bytes) -> bytes:
    """The contents of an ELF file's sections .text*: the code of a kernel and of its functions."""
    (table,), (count, names) = (
        struct.unpack_from("<Q", cubin, 0x28),
        struct.unpack_from("<HH", cubin, 0x3C),
    )
    # Of each section (name, type, flags, address, offset, size): the first six fields of 64 bytes.
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * index) for index in range(count)]
    first_name = sections[names][4]
    return b"".join(
        cubin[offset : offset + size]
        for name, _, _, _, offset, size in sections
        if cubin.startswith(b".text", first_name + name)
    )


def disassembled(codes: list[bytes], arch: int) -> list[str]:
    """Each kernel's instructions as text.

    One run of the disassembler for all of them: it takes 0.3 to 0.6 s to start and little more to
    work, which was two fifths of the time that all of this took.
    """
    texts: list[list[str]] = [[] for _ in codes]
    kernel_of = [kernel for kernel, code in enumerate(codes) for _ in code[::INSTRUCTION_BYTES]]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(b"".join(codes))
        command = [knobs.nvidia.nvdisasm.path, "--no-dataflow", "--binary"]
        printed = subprocess.run(
            [*command, DISASSEMBLER_NAMES[arch], file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    for address, instruction in re.findall(r"^\s*/\*([0-9a-f]+)\*/(.*)", printed, re.MULTILINE):
        texts[kernel_of[int(address, 16) // INSTRUCTION_BYTES]].append(instruction)
    assert [len(text) * INSTRUCTION_BYTES for text in texts] == [len(code) for code in codes]
    return ["\n".join(text) for text in texts]


def _short(value: Any) -> str:
    return getattr(value, "__name__", str(value)).removeprefix("torch.")


LAUNCHES: list[Launch] = []  # filled before the workers fork: kernels cannot be sent to them


def _compiled_at(index: int) -> Binary:
    return compiled(LAUNCHES[index])


def compile_all(num_workers: int) -> list[Row]:
    """Compile and judge everything in an empty cache: what comes from a cache has no log."""
    LAUNCHES[:] = all_launches()
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir, knobs.nvidia.dump_ptxas_log = cache, True
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork")) as pool:
            binaries = list(pool.map(_compiled_at, range(len(LAUNCHES))))
    rows = []
    for arch in (80, 90):
        here = [
            (launch, binary)
            for launch, binary in zip(LAUNCHES, binaries, strict=True)
            if launch.arch == arch
        ]
        texts = disassembled([binary.code for _, binary in here], arch)
        for (launch, binary), sass in zip(here, texts, strict=True):
            name, shared, num_warps = launch.kernel.__name__, binary.shared, binary.num_warps
            rows.append(judge(name, arch, launch.variant, binary.log, sass, shared, num_warps))
    return rows


def main() -> int:
    """Print a line for each compiled kernel; return 1 where one breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that compile"
    )
    options = parser.parse_args()
    if knobs.runtime.interpret:
        parser.error(
            "TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it"
        )
    rows = compile_all(options.workers)
    for row in rows:
        sizes = (
            f"{row.registers:3d} registers {row.shared:6d} shared {row.stack} stack"
            f" {row.spills} spilled"
        )
        print(
            f"{row.kernel} sm_{row.arch} {sizes} | {row.variant} |"
            f" {'; '.join(row.problems) or 'fits'}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    failures = [row for row in rows if row.problems]
    print(f"{len(rows)} kernels compiled, {len(failures)} break a rule")
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
