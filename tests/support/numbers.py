"""How wrong a result may be, and how wrong it is."""

import torch

# Relative error of a whole tensor, ||out - expected|| / ||expected||, against float64: a few
# roundings of each type.
ERRORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected|| of values of order 1, in float64; NaN or a wrong shape
    never passes.

    A few values may all be tiny by chance, and then be rounded to zero: the norm counts as at least
    a tenth an element."""
    assert out.shape == expected.shape
    scale = expected.double().norm().clamp_min(0.1 * expected.numel() ** 0.5)
    error = float((out.double() - expected.double()).norm().detach() / scale.detach())
    return error if error == error else float("inf")
