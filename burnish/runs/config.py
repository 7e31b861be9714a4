"""What the configuration of every training run has."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.config import MOST_SEED, key
from burnish.machine.device import DeviceConfig
from burnish.plugins import PluginsConfig
from burnish.runs.tracking import WANDB_MODES


@dataclass(frozen=True, kw_only=True)
class RunConfig(DeviceConfig, PluginsConfig):
    """See `burnish.runs.folder.Run.open`."""

    run_dir: str = key(doc="folder of this run")
    seed: int = key(
        0, "of the weights, the batches, the environments and all else that is random", least=0, most=MOST_SEED
    )
    wandb: str = key("disabled", "Weights & Biases", options=WANDB_MODES)
    resume: str | None = key(None, "run folder to go on with (null: a new run)")
    overwrite: bool = key(False, "delete an earlier run in run_dir")
