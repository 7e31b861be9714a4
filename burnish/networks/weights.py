"""Weights out of a safetensors file, into the module that they are of."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from burnish.errors import BurnishError
from burnish.foreign import told_as


def load_weights(module: nn.Module, path: Path, description: str) -> None:
    """Take all weights of `module` from `path`.

    Args:
        description: name of the file beside it that says what the module is.

    Raises:
        BurnishError: the file is damaged, or a weight is missing, one too many, or of another shape or type.
    """
    from safetensors.torch import load_file

    with told_as(f"{path} is damaged"):
        weights = load_file(path)
    unfit = f"{path} does not fit {description} beside it"
    for name, own in module.state_dict().items():
        found = weights.get(name)
        if found is not None and (found.shape != own.shape or found.dtype != own.dtype):
            kinds = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (found, own)]
            raise BurnishError(f"{unfit}: {name} is {kinds[0]}, expected {kinds[1]}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BurnishError(f"{unfit}: {reason}") from error
