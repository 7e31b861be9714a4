"""Distances between two sets of points of the plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BANDWIDTH = 0.2  # of the kernel, in units of the points; fixed, so that every set is measured alike
DIRECTIONS = 128


def mmd(x: Tensor, y: Tensor) -> float:
    """Maximum mean discrepancy of `x` (n, 2) and `y` (m, 2) with an RBF kernel of `BANDWIDTH`.

    The square root of the V-statistic (Gretton et al. 2012, eq. 5): never negative, and above 0 for finite sets.
    """
    # MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)
    squared = _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)
    return math.sqrt(max(squared, 0.0))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    squared = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    # k(x, y) = exp(-|x - y|^2 / (2 b^2))
    return float(torch.exp(squared / (-2 * BANDWIDTH**2)).mean(dtype=torch.float64))


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Sliced Wasserstein-1 distance of `x` and `y` (n, 2), over `DIRECTIONS` evenly spaced directions of the plane."""
    if x.shape != y.shape:
        raise ValueError(f"sets of shapes {tuple(x.shape)} and {tuple(y.shape)}: expected equally many points")
    angles = torch.arange(DIRECTIONS, dtype=x.dtype) * (math.pi / DIRECTIONS)
    directions = torch.stack([angles.cos(), angles.sin()])  # (2, DIRECTIONS)
    # in one dimension, W1 of equally many points: mean |x_(i) - y_(i)| of the sorted ones
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())
