"""Where to compute."""

from __future__ import annotations

import torch

from burnish.errors import BurnishError


def resolve_device(name: str) -> torch.device:
    """ "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        BurnishError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BurnishError(f"device={name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise BurnishError(f"device={name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BurnishError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use"
        )
    # TF32 convolutions differ between batch sizes by more than a likelihood ratio may: keep float32
    torch.backends.cudnn.allow_tf32 = False
    return device
