"""Shapes and settings of cases."""

import torch

from benchmarks.kernels.case import Setting, Shape


def test_shape_names_its_sizes_and_no_tokens_where_it_has_none() -> None:
    assert str(Shape("some", 96, 64, 128)) == "some T96 H64 I128"
    assert str(Shape("some", 0, 64, 128)) == "some H64 I128"


def test_setting_has_tensors_of_its_sizes() -> None:
    setting = Setting(Shape("some", 6, 8, 12), torch.bfloat16, "cpu")
    assert setting.activation_bytes == setting.activations("gate")["gate"].nbytes == 6 * 12 * 2
    weights = {name: tuple(weight.shape) for name, weight in setting.weights().items()}
    assert weights == {"gate_weight": (12, 8), "up_weight": (12, 8), "down_weight": (8, 12)}
