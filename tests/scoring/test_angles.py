"""Angles between vectors, by hand."""

import math

import pytest
import torch

from ptl_fast.scoring.angles import angular_distance


def test_angular_distance_by_hand() -> None:
    right = torch.tensor([2.0, 0.0])
    others = torch.tensor([[5.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    assert angular_distance(right.expand(5, 2), others).tolist() == pytest.approx(
        [0, 0.5, 0.25, 1, 0.5], abs=1e-6
    )
    tiny = 1e-5  # float32's cosine of this angle is exactly 1
    turned = torch.tensor([math.cos(tiny), math.sin(tiny)])
    assert angular_distance(right, turned).item() == pytest.approx(tiny / math.pi, rel=1e-4)
