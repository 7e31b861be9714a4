"""The one door to a saved policy."""

from __future__ import annotations

import os

import torch

from burnish.errors import BurnishError
from burnish.policies.base import Policy, policy_class
from burnish.policies.folder import DESCRIPTION, policy_folder, read_description


def load_policy(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Policy:
    """Read a policy folder of any kind, or the latest checkpoint of a run folder.

    Raises:
        BurnishError: a file is missing or damaged, or the two do not belong together.
    """
    folder = policy_folder(folder)
    kind = read_description(folder)["kind"]
    try:
        cls = policy_class(kind)
    except BurnishError as error:
        raise BurnishError(f"{folder / DESCRIPTION}: {error}") from error
    return cls.load(folder, device)
