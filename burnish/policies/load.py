"""Which kinds of policies there are, and the one door to a saved one."""

from __future__ import annotations

import os

import torch

from burnish.errors import BurnishError
from burnish.policies.base import Policy
from burnish.policies.folder import DESCRIPTION, policy_folder, read_description
from burnish.registry import load

POLICIES = {
    "diffusion": "burnish.policies.diffusion:DiffusionPolicy",
    "flow": "burnish.policies.flow:FlowPolicy",
    "gaussian": "burnish.policies.gaussian:GaussianPolicy",
}
"""Kind -> module:class; the class names its config in `Config`."""


def policy_class(kind: str) -> type[Policy]:
    """The class of one kind of policies.

    Raises:
        BurnishError: there is none.
    """
    if kind not in POLICIES:
        raise BurnishError(f"kind={kind}: expected one of {', '.join(POLICIES)}")
    return load(POLICIES[kind])


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
