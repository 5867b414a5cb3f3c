"""The C++ kernels for CPUs (csrc), loaded with ctypes. Where they were not built, ``available`` is
False, and the operations run on their twins in ``reference``.

Nothing here checks arguments: the operations do, and then ask ``takes`` or ``holds_memory``.

Shape suffixes: T tokens, I FFN width, H hidden size, L layers, K kept neurons, M moves.
"""

import ctypes
import functools
import warnings
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

# The codes of csrc/kernels.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, None: 2}

_POINTER, _SIZE, _CODE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# The functions of csrc/api.cpp.
_SIGNATURES = {
    "ptl_gated_activation": [*[_POINTER] * 3, *[_SIZE] * 5, *[_CODE] * 2, *[_POINTER] * 5],
    "ptl_gated_activation_backward": [*[_POINTER] * 5, *[_SIZE] * 7, *[_CODE] * 2],
    "ptl_residual_change": [*[_POINTER] * 2, *[_SIZE] * 4, _CODE, *[_POINTER] * 2],
    "ptl_hole_filling": [_POINTER, *[_SIZE] * 4, *[_POINTER] * 5],
    "ptl_move_rows": [_POINTER, *[_SIZE] * 2, *[_POINTER] * 2, *[_SIZE] * 2],
    "ptl_compact_columns": [_POINTER, *[_SIZE] * 5, *[_POINTER] * 2, _SIZE],
}


def available() -> bool:
    """Whether the compiled kernels can be used at all."""
    return _library() is not None


def takes(*tensors: Tensor) -> bool:
    """Whether a kernel that does arithmetic can work on these tensors, which are all of one type:
    fp32 or bf16, in ordinary CPU memory. Kernels that only move rows or columns take any type.
    """
    return tensors[0].dtype in DTYPES and all(map(holds_memory, tensors)) and available()


def holds_memory(tensor: Tensor) -> bool:
    """Whether the tensor is ordinary CPU memory: on no other device, and of no subclass (fake,
    functional, distributed, quantised tensors), whose data_ptr may not lead to its values.
    """
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter)


def instruction_set() -> str:
    """The instruction set in use: avx512, avx2 or baseline; none where nothing was built."""
    library = _library()
    return library.ptl_instruction_set().decode() if library else "none"


def use_instruction_set(name: str) -> bool:
    """For tests: use this instruction set ("" is the processor's best), everywhere in the process.
    Return False, and change nothing, where the processor lacks it or the kernels were not built.
    """
    library = _library()
    return library is not None and library.ptl_use_instruction_set(name.encode()) == 0


def gated_activation(
    gate_TI: Tensor,
    up_TI: Tensor,
    out_TI: Tensor,
    activation: str | None,
    sums: tuple[Tensor, ...],
    token_mask_T: Tensor | None,
) -> None:
    """out = activation(gate) * up, and add to ``sums``: (), (square,) or (square, sum, absolute,
    maximum), each (I,) fp64.
    """
    num_tokens, width = gate_TI.shape
    strides = gate_TI.stride(0), up_TI.stride(0), out_TI.stride(0)
    codes = DTYPES[gate_TI.dtype], ACTIVATIONS[activation]
    pointers = [tensor.data_ptr() for tensor in sums] + [None] * (4 - len(sums))
    _call(
        "ptl_gated_activation",
        gate_TI,
        up_TI,
        out_TI,
        num_tokens,
        width,
        *strides,
        *codes,
        token_mask_T,
        *pointers,
    )


def gated_activation_backward(
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
    grad_gate_TI: Tensor,
    grad_up_TI: Tensor,
    activation: str | None,
) -> None:
    """grad_gate = grad * up * activation'(gate); grad_up = grad * activation(gate)."""
    tensors = grad_TI, gate_TI, up_TI, grad_gate_TI, grad_up_TI
    strides = [tensor.stride(0) for tensor in tensors]
    _call(
        "ptl_gated_activation_backward",
        *tensors,
        *gate_TI.shape,
        *strides,
        DTYPES[gate_TI.dtype],
        ACTIVATIONS[activation],
    )


def residual_change(
    before_TH: Tensor, after_TH: Tensor, out_3: Tensor, token_mask_T: Tensor | None
) -> None:
    """Add the three sums of ``reference.residual_change`` to ``out_3``, (3,) fp64."""
    strides = before_TH.stride(0), after_TH.stride(0)
    _call(
        "ptl_residual_change",
        before_TH,
        after_TH,
        *before_TH.shape,
        *strides,
        DTYPES[before_TH.dtype],
        token_mask_T,
        out_3,
    )


def hole_filling(kept_LK: Tensor, width: int) -> tuple[Tensor, ...] | None:
    """What ``reference.hole_filling`` returns; None where it raises an error."""
    (num_layers, num_kept), kept_LK = kept_LK.shape, kept_LK.contiguous()
    max_moves = max(1, min(num_kept, width - num_kept))
    shapes = (num_layers, num_kept), (num_layers, max_moves), (num_layers, max_moves), (num_layers,)
    # device="cpu": torch.set_default_device may say otherwise.
    outputs = tuple(torch.empty(shape, dtype=torch.int64, device="cpu") for shape in shapes)
    # Scratch memory comes from here: where C++ cannot allocate, its exception ends the process.
    stays_I = torch.empty(width, dtype=torch.uint8, device="cpu")
    wrong = _call(
        "ptl_hole_filling", kept_LK, num_layers, num_kept, width, max_moves, *outputs, stays_I
    )
    return None if wrong else outputs


def move_rows(tensors: Sequence[Tensor], sources_LM: Tensor, destinations_LM: Tensor) -> None:
    """Copy rows within contiguous tensors of one shape and type: those of layer l are tensors l,
    l + num_layers and so on.

    No row is both a source and a destination. Each layer's lists end in -1 where they are shorter.
    """
    row_bytes = tensors[0].nbytes // len(tensors[0])
    _call(
        "ptl_move_rows",
        _addresses(tensors),
        len(tensors),
        row_bytes,
        sources_LM,
        destinations_LM,
        *sources_LM.shape,
    )


def compact_columns(
    tensors: Sequence[Tensor], num_kept: int, sources_LM: Tensor, destinations_LM: Tensor
) -> None:
    """In the memory of each layer's contiguous tensor (rows, width), make the contiguous (rows,
    num_kept) that these moves leave of it. The tensors keep their shape; the caller changes it.
    """
    sizes = len(tensors), *tensors[0].shape, num_kept, tensors[0].element_size()
    _call(
        "ptl_compact_columns",
        _addresses(tensors),
        *sizes,
        sources_LM,
        destinations_LM,
        sources_LM.shape[1],
    )


def _addresses(tensors: Sequence[Tensor]) -> "array[int]":
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def _call(name: str, *arguments: "Tensor | array[int] | int | None") -> int | None:
    library = _library()
    assert library is not None
    function: Callable[..., int | None] = getattr(library, name)
    return function(*map(_argument, arguments))


def _argument(value: "Tensor | array[int] | int | None") -> int | None:
    """Numbers as they are, memory by its address."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return value.buffer_info()[0] if isinstance(value, array) else value


@functools.cache
def _library() -> ctypes.CDLL | None:
    reason = "they are not there (installing ptl_fast builds them, where there is a C++ compiler)"
    # There may be several: each version of Python that built here left one of its name.
    for file in sorted(Path(__file__).parent.glob("_cpu*.so")):
        try:
            _share_openmp()
            return _declared(ctypes.CDLL(str(file)))
        except (OSError, AttributeError) as error:
            # OSError: for another machine. AttributeError: an older source, without a function.
            reason = f"{file.name}: {error}; install again"
    warnings.warn(
        f"ptl_kernels: the CPU kernels are not in use, plain PyTorch is (slower): {reason}",
        stacklevel=2,
    )
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the functions' types; AttributeError where one is missing."""
    for name, types in _SIGNATURES.items():
        getattr(library, name).argtypes = types
        getattr(library, name).restype = None
    library.ptl_instruction_set.restype = ctypes.c_char_p
    library.ptl_use_instruction_set.restype = ctypes.c_int
    library.ptl_hole_filling.restype = ctypes.c_int
    return library


def _share_openmp() -> None:
    """Make the OpenMP library that torch has loaded visible to ours, which is linked with none.

    One pool of threads then serves both. A second OpenMP library would have threads of its own:
    they would compete for cores with torch's, which spin for a while after each of torch's
    operations, and ``torch.set_num_threads`` would not reach them.
    """
    loaded = Path("/proc/self/maps")
    names = (
        {line.split(maxsplit=5)[-1] for line in loaded.read_text().splitlines() if "/" in line}
        if loaded.exists()
        else set()
    )
    runtimes = [
        name
        for name in sorted(names)
        if Path(name).name.startswith(("libgomp", "libiomp5", "libomp"))
    ]
    ctypes.CDLL(runtimes[0] if runtimes else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
