"""The driver's version and the energy counter, read from NVIDIA's management library (NVML) without
a package for it.
"""

import ctypes
from collections.abc import Callable

import torch


def driver_version() -> str | None:
    """The driver's version, or None without NVML."""
    library = _library()
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    # every function of NVML returns 0 for success
    if library is None or library.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    return text.value.decode()


def energy_reader() -> Callable[[], float] | None:
    """A function that returns the joules that the current CUDA device has taken since its driver
    was loaded; None where NVML does not count them, as on slices of a GPU."""
    library = _library()
    if library is None or not torch.cuda.is_available():
        return None
    # by UUID: NVML counts all of the machine's devices, CUDA only those in CUDA_VISIBLE_DEVICES
    name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return read


def _library() -> ctypes.CDLL | None:
    """NVML, initialised; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
