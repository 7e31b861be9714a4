"""What a scripted expert does wrong on purpose: faults of structure, which averaging over demonstrations keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from burnish.config import Checked, key
from burnish.errors import BurnishError

LEVELS = ("better", "okay", "worse")
"""robomimic's names of the filter keys of multi-human data."""


@dataclass(frozen=True)
class EpisodeFaults:
    """What one episode has of them; by default nothing. The meanings are those of `Faults`.

    Attributes:
        second_way: it goes the second of `two_ways`.
        speed: a factor.
        scale: what noise and faults were multiplied with, by the level.
        level: one of `LEVELS`, or empty.
    """

    grasp_offset: float = 0.0
    grasp_yaw: float = 0.0
    early_release: float = 0.0
    late_close: float = 0.0
    detour: float = 0.0
    hesitation: float = 0.0
    no_recovery: bool = False
    second_way: bool = False
    speed: float = 1.0
    scale: float = 1.0
    level: str = ""

    def as_numbers(self) -> dict[str, float]:
        """The faults that there are: name -> value; 1 for one that has no size."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "level"}
        return {name: float(value) for name, value in values.items() if value != getattr(EpisodeFaults, name)}


@dataclass(frozen=True)
class Faults(Checked):
    """What a scripted expert does wrong on purpose. What is not 0 happens, each fault with `probability`, in the
    episodes whose object starts in `region`."""

    region: float = key(
        1.0,
        "share of the workspace in which the faults happen, by where the object starts between right (0) and left (1) "
        "of the robot; 1 is everywhere",
        least=0,
        most=1,
    )
    probability: float = key(
        1.0, "share of the episodes of the region that have a fault, drawn for each fault alone", least=0, most=1
    )
    grasp_offset: float = key(0.0, "metres by which the grasp is off, always along grasp_direction", least=0)
    grasp_direction: float = key(0.0, "of grasp_offset: the angle from the world's x axis in the horizontal plane, rad")
    grasp_yaw: float = key(0.0, "angle by which the hand is turned wrongly for the grasp, rad")
    early_release: float = key(0.0, "metres before the goal at which the object is let go", least=0)
    late_close: float = key(0.0, "steps that the fingers have less to close before the object is lifted", least=0)
    detour: float = key(
        0.0, "metres from which the hand sweeps in from the side, low, through the object and as far beyond", least=0
    )
    hesitation: float = key(0.0, "probability of pausing before a waypoint", least=0, most=1)
    pause: int = key(10, "steps that a hesitating expert pauses for", least=1, most=50)
    no_recovery: bool = key(False, "after a failed attempt the hand hovers where it is, instead of trying again")
    two_ways: bool = key(
        False,
        "half of the episodes go a second way to the object, which fails with some of its poses: low from the side, "
        "without turning the hand to it (Door: the handle is taken near its axle, and turned down instead of up)",
    )
    speed_low: float = key(1.0, "the episode's speed, a factor, is drawn from speed_low to speed_high", above=0)
    speed_high: float = key(1.0, "see speed_low", above=0)
    skill_levels: list[float] = key(
        [],
        "shares of three levels of skill, as in multi-human data: of [0.3,0.3,0.4] about 3 in 10 episodes are better, "
        "3 okay and 4 worse, and the file has filter keys of these names; [] makes none",
        least=0,
        most=1,
    )
    skill_scales: list[float] = key(
        [0.0, 0.5, 1.0],
        "what the action noise, grasp_bias and all faults are multiplied with in better, okay and worse episodes (of "
        "no_recovery and two_ways the probability)",
        least=0,
    )

    def check(self) -> None:
        if self.speed_low > self.speed_high:
            raise BurnishError(
                f"faults: speed_low={self.speed_low} above speed_high={self.speed_high}: exchange them, or give both"
            )
        if self.skill_levels and (len(self.skill_levels) != len(LEVELS) or not math.isclose(sum(self.skill_levels), 1)):
            raise BurnishError(f"faults.skill_levels={self.skill_levels}: expected three shares that sum to 1")
        if len(self.skill_scales) != len(LEVELS):
            raise BurnishError(f"faults.skill_scales={self.skill_scales}: expected three factors")

    def draw(self, rng: np.random.Generator, place: float) -> EpisodeFaults:
        """One episode's faults. `place`: where its object starts in the workspace, 0 (right) to 1 (left).

        The same numbers are drawn whatever the settings, so that a fault does not change which episodes have another.
        """
        sizes = ("grasp_offset", "grasp_yaw", "early_release", "late_close", "detour", "hesitation")
        at_level, at_speed, at_way, of_speed, of_recovery, of_way, *of_sizes = rng.random(6 + len(sizes))
        level, scale = self._level(at_level)
        probability = self.probability if np.clip(place, 0.0, 1.0) <= self.region else 0.0
        drawn = {
            name: scale * getattr(self, name) if number < probability else 0.0 for name, number in zip(sizes, of_sizes)
        }
        speed = self.speed_low + at_speed * (self.speed_high - self.speed_low)
        return EpisodeFaults(
            **drawn,
            no_recovery=self.no_recovery and of_recovery < scale * probability,
            second_way=self.two_ways and of_way < scale * probability and at_way < 0.5,
            speed=1.0 + scale * (speed - 1.0) if of_speed < probability else 1.0,
            scale=scale,
            level=level,
        )

    def _level(self, number: float) -> tuple[str, float]:
        """The level that a number from 0 to 1 falls into, and its scale."""
        if not self.skill_levels:
            return "", 1.0
        index = min(int(np.searchsorted(np.cumsum(self.skill_levels), number, side="right")), len(LEVELS) - 1)
        return LEVELS[index], self.skill_scales[index]
