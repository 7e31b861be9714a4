"""Where to compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.config import Checked, key
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.machine.memory import keep_freed_memory

MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Checked):
    """See `resolve_device`."""

    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    torch_threads: int = key(
        1, "of torch on the CPU; more for large networks on an idle machine", least=1, most=MOST_THREADS
    )


def resolve_device(name: str, torch_threads: int = 1) -> torch.device:
    """The device of a run, with torch set up for it.

    Args:
        name: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        torch_threads: of torch on the CPU. The default, 1, leaves the cores to the simulators, gives the same bits
            on machines with another number of cores, and does not collapse where others use them too.

    Raises:
        BurnishError: no such device here.
    """
    if not 1 <= torch_threads <= MOST_THREADS:
        raise BurnishError(f"torch_threads={torch_threads}: expected 1 to {MOST_THREADS}")
    torch.set_num_threads(torch_threads)
    keep_freed_memory()
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
    with told_as(f"device={name} cannot be used"):  # a broken driver, a device that another program has to itself
        torch.zeros(1, device=device)
    # TF32 convolutions differ between batch sizes by more than a likelihood ratio may: keep float32
    torch.backends.cudnn.allow_tf32 = False
    return device
