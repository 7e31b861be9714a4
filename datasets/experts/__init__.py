"""Scripted experts for robosuite's Lift, PickPlaceCan, Stack, NutAssemblySquare and Door, made for one Panda."""

from __future__ import annotations

from burnish.datasets.experts.can import CanExpert
from burnish.datasets.experts.door import DoorExpert
from burnish.datasets.experts.expert import Expert
from burnish.datasets.experts.faults import Faults
from burnish.datasets.experts.lift import LiftExpert
from burnish.datasets.experts.square import SquareExpert
from burnish.datasets.experts.stack import StackExpert
from burnish.errors import BurnishError

__all__ = ["Expert", "make_expert"]


def make_expert(env_id: str, grasp_bias: float = 0.0, speed: float = 1.0, faults: Faults | None = None) -> Expert:
    """The expert for robosuite's environment `env_id`; for "module:Class" that of the environment it is derived from.

    Raises BurnishError where there is none.
    """
    from burnish.envs.robosuite.env import environment_class

    experts: dict[str, type[Expert]] = {
        "Lift": LiftExpert,
        "PickPlaceCan": CanExpert,
        "Stack": StackExpert,
        "NutAssemblySquare": SquareExpert,
        "Door": DoorExpert,
    }
    names = [base.__name__ for base in environment_class(env_id).__mro__] if ":" in env_id else [env_id]
    found = next((experts[name] for name in names if name in experts), None)
    if found is None:
        raise BurnishError(f"no scripted expert for {env_id}; there are experts for: {', '.join(experts)}")
    return found(grasp_bias, speed, faults)
