"""Where the shared data lie, Ctrl-C as in a terminal, one thread for torch: parallel tests must not fight for cores."""

import os
import signal
from pathlib import Path

import pytest
import torch
from bandit import cloned_weights

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a script starts with &
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with `human/` and `parity/`, beside the repository or at $BURNISH_SHARED_DATA."""
    folder = Path(os.environ.get("BURNISH_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set BURNISH_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def pretrained_weights() -> dict[str, torch.Tensor]:
    """Of `bandit.make_policy()`, cloned from N(0, 0.3^2) actions."""
    return cloned_weights()
