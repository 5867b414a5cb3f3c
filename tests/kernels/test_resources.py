"""Every shipped kernel fits its GPU's registers and shared memory, and the check that says so can
fail.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import kernel_resources
from support.kernel_launches import covering
from support.kernel_resources import judge

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "kernels" / "torch-ext" / "ptl_kernels"
LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_dual_gemm_kernel' for 'sm_80'
ptxas info    : Function properties for _dual_gemm_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 440 bytes cmem[0]
"""
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0020*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;
        /*0030*/                   EXIT ;
"""
WARNING = (
    "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are"
    " serialized due to ...\n"
)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """A process of its own: where this one interprets kernels, it cannot compile them. It runs as a
    module, because a script's folder is on the path, and support/triton.py is not Triton.
    """
    file = tmp_path_factory.mktemp("resources") / "rows.json"
    command = [sys.executable, "-m", "support.kernel_resources", "--json", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=900
    )
    return done, json.loads(file.read_text()) if file.exists() else []


def kernels_in_the_package() -> set[str]:
    """Names of the functions under @triton.jit that end in _kernel: launches start those."""
    trees = (ast.walk(ast.parse(file.read_text())) for file in PACKAGE.glob("**/*.py"))
    functions = (
        node
        for tree in trees
        for node in tree
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    )
    return {
        each.name
        for each in functions
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in each.decorator_list)
    }


def test_every_shipped_kernel_fits(finished):
    done, rows = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [row for row in rows if row["problems"]]
    assert all(row["registers"] > 0 for row in rows)


def test_every_kernel_is_compiled_for_every_gpu_it_runs_on(finished):
    _, rows = finished
    expected = {
        (kernel, arch)
        for kernel in kernels_in_the_package()
        for arch in kernel_resources.ONLY_ON.get(kernel, (80, 90))
    }
    assert {(row["kernel"], row["arch"]) for row in rows} == expected


def test_kernels_are_found():
    """The test before cannot pass because nothing was found."""
    known = {
        "_gated_activation_kernel",
        "_gated_activation_backward_kernel",
        "_add_splits_kernel",
        "_residual_change_kernel",
    }
    known |= {"_move_rows_kernel", "_gather_columns_kernel", *kernel_resources.GEMM_KERNELS}
    assert kernels_in_the_package() >= known


@pytest.mark.parametrize("arch", [80, 90])
def test_a_kernel_that_fits_has_no_problem(arch):
    row = judge("_dual_gemm_kernel", arch, "", LOG, SASS, shared=98304, num_warps=8)
    assert row.problems == []
    assert (row.registers, row.stack, row.spills) == (168, 0, 0)


@pytest.mark.parametrize(
    ("log", "sass", "shared", "arch", "problem"),
    [
        pytest.param(
            LOG.replace("0 bytes stack", "8 bytes stack"),
            SASS,
            0,
            80,
            "8 bytes of stack",
            id="stack",
        ),
        pytest.param(
            LOG.replace("0 bytes spill stores", "4 bytes spill stores"),
            SASS,
            0,
            80,
            "4 bytes spilled",
            id="spill-stores",
        ),
        pytest.param(
            LOG.replace("0 bytes spill loads", "4 bytes spill loads"),
            SASS,
            0,
            80,
            "4 bytes spilled",
            id="spill-loads",
        ),
        pytest.param(
            LOG.replace("168 registers", "257 registers"),
            SASS,
            0,
            80,
            "exceed 65536",
            id="registers",
        ),
        pytest.param(LOG + WARNING, SASS, 0, 90, "C7514", id="C7514"),
        pytest.param(LOG + WARNING.replace("C7514", "C7515"), SASS, 0, 90, "C7515", id="C7515"),
        pytest.param("", SASS, 0, 80, "ptxas reported no", id="no-log"),
        pytest.param(
            LOG, SASS + "STL.64 [R1+0x8], R2 ;", 0, 80, "1 accesses to local memory", id="STL"
        ),
        pytest.param(
            LOG, SASS + "@P0 LDL R2, [R1] ;", 0, 80, "1 accesses to local memory", id="LDL"
        ),
        pytest.param(LOG, SASS.replace("HMMA", "FFMA"), 0, 80, "no HMMA", id="no-HMMA"),
        pytest.param(LOG, SASS.replace("HGMMA", "HMMA"), 0, 90, "no HGMMA", id="no-HGMMA"),
        pytest.param(LOG, "", 0, 80, "no code", id="no-sass"),
        pytest.param(LOG, SASS, 163 * 1024 + 1, 80, "shared memory", id="shared-80"),
        pytest.param(LOG, SASS, 227 * 1024 + 1, 90, "shared memory", id="shared-90"),
    ],
)
def test_each_rule_can_be_broken(log, sass, shared, arch, problem):
    problems = judge("_dual_gemm_kernel", arch, "", log, sass, shared, num_warps=8).problems
    assert any(problem in each for each in problems), problems


def test_variants_cover_every_pair_of_values():
    choices = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1)}
    chosen = covering(**choices)
    for (first, firsts), (second, seconds) in [
        (p, q) for p in choices.items() for q in choices.items() if p[0] < q[0]
    ]:
        assert {(each[first], each[second]) for each in chosen} == {
            (x, y) for x in firsts for y in seconds
        }
    assert len(chosen) < 18
