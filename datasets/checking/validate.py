"""Everything that can be said against a set of demonstrations: its values, and whether it can be replayed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from burnish.datasets.checking.checks import ERROR, WARNING, Finding, check
from burnish.datasets.episodes import Demonstrations
from burnish.datasets.formats.robomimic import ROBOSUITE_TYPE, success_reward
from burnish.datasets.load import read


class Validation(NamedTuple):
    """What `validate` found, and what it did to find it."""

    demos: Demonstrations
    findings: list[Finding]
    note: str  # how many episodes were replayed with what result, or why none was

    @property
    def n_errors(self) -> int:
        return sum(finding.level == ERROR for finding in self.findings)


def validate(
    source: str | Path,
    k: int = 0,
    filter_key: str | None = None,
    obs_keys: list[str] | None = None,
    horizon: int = 1,
) -> Validation:
    """Check the values of all episodes and replay `k` of them in robosuite (0: none).

    An error: the recorded states of an episode with a success reward do not reach success. A warning: they
    do, but the recorded actions from the first state do not (contacts amplify the rounding of another MuJoCo
    version). Data of other environments carry no states and are not replayed.

    Raises BurnishError if the source cannot be read, or its states cannot be restored.
    """
    demos = read(source, filter_key)
    findings = check(demos, obs_keys, horizon)
    if k < 1:
        return Validation(demos, findings, "no episode replayed, none was asked for")
    if demos.env_args is None or demos.env_args.get("type") != ROBOSUITE_TYPE:
        return Validation(demos, findings, "no episode replayed: only robosuite's data carry simulator states")
    if any(finding.level == ERROR for finding in findings):
        return Validation(demos, findings, "no episode replayed: the errors come first")
    if any(episode.states is None for episode in demos.episodes):
        return Validation(demos, findings, "no episode replayed: the file has no simulator states")
    from burnish.datasets.checking.replaying import replay

    results = replay(demos, k)
    success = success_reward(demos.env_args)
    told = [] if success is None else [one.name for one in demos.episodes if (one.rewards >= success).any()]
    for result in results:
        if result.name in told and not result.states_success:
            findings.append(Finding(ERROR, result.name, "recorded as a success, but its states reach none"))
        elif result.states_success and not result.open_loop_success:
            message = "its actions from the first state do not reach the success that its states show"
            findings.append(Finding(WARNING, result.name, message))
    from_states = sum(result.states_success for result in results)
    from_actions = sum(result.open_loop_success for result in results)
    note = f"{len(results)} episodes replayed: {from_states} succeed by states, {from_actions} by actions"
    return Validation(demos, findings, note)
