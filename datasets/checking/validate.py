"""Everything that can be said against a set of demonstrations: its values, and whether it can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from burnish.datasets.checking.checks import ERROR, WARNING, Finding, check
from burnish.datasets.checking.observing import conventions
from burnish.datasets.episodes import Demonstrations
from burnish.datasets.for_task import environments, in_unit_range
from burnish.datasets.formats.robomimic import ROBOSUITE_TYPE, success_reward
from burnish.datasets.load import read
from burnish.envs.same_environment import ACTIONS, all_of, as_option, differences
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

if TYPE_CHECKING:  # it needs robosuite
    from burnish.datasets.checking.replaying import ReplayResult


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
    task: TaskConfig | None = None,
    allow: Sequence[str] = (),
) -> Validation:
    """Check the values of all episodes and, with a `task`, the environment; replay `k` of them in robosuite (0: none),
    and compare what was recorded with what is observed in their states.

    An error: the recorded states of an episode with a success reward do not reach success. A warning: they
    do, but the recorded actions from the first state do not (contacts amplify the rounding of another MuJoCo
    version). Data of other environments carry no states and are not replayed. What is recorded otherwise than it is
    observed is an error of the observations that the task takes.

    Raises BurnishError if the source cannot be read.
    """
    demos = read(source, filter_key, task.sensors if task else ())
    obs_keys = task.obs_keys if task and obs_keys is None else obs_keys
    findings = check(demos, obs_keys, horizon) + _of_the_environment(demos, task, allow)
    not_replayed = _why_not(demos, findings, k)
    results: list[ReplayResult] = []
    if not_replayed is None:
        from burnish.datasets.checking.replaying import NoEnvironment, replay

        try:
            results = replay(demos, k)
        except NoEnvironment as error:
            not_replayed = str(error)
        except BurnishError as error:
            findings.append(Finding(ERROR, "all", str(error)))
            not_replayed = "the errors come first"
    if not_replayed is not None:
        return Validation(demos, findings, f"no episode replayed: {not_replayed}")
    success = success_reward(demos.env_args)
    told = [] if success is None else [one.name for one in demos.episodes if (one.rewards >= success).any()]
    for result in results:
        if result.name in told and not result.states_success:
            findings.append(Finding(ERROR, result.name, "recorded as a success, but its states reach none"))
        elif result.states_success and not result.open_loop_success:
            message = "its actions from the first state do not reach the success that its states show"
            findings.append(Finding(WARNING, result.name, message))
    for key, what in conventions([step for result in results for step in result.compared]):
        level = ERROR if task and key in task.obs_keys else WARNING
        findings.append(Finding(level, "all", f"observation {key!r} {what}"))
    from_states = sum(result.states_success for result in results)
    from_actions = sum(result.open_loop_success for result in results)
    note = f"{len(results)} episodes replayed: {from_states} succeed by states, {from_actions} by actions"
    return Validation(demos, findings, note)


def _why_not(demos: Demonstrations, findings: list[Finding], k: int) -> str | None:
    """Why no episode can be replayed, in words."""
    if k < 1:
        return "none was asked for"
    if demos.env_args is None or demos.env_args.get("type") != ROBOSUITE_TYPE:
        return "only robosuite's data carry simulator states"
    if any(finding.level == ERROR for finding in findings):
        return "the errors come first"
    if any(episode.states is None for episode in demos.episodes):
        return "the file has no simulator states"
    return None


def _of_the_environment(demos: Demonstrations, task: TaskConfig | None, allow: Sequence[str]) -> list[Finding]:
    """In what the file's environment is not the task's, and whether the actions are of another kind."""
    allowed, findings = all_of(allow), []
    if task is not None:
        for one in differences(*environments(demos, task)):
            refused = one.decisive and one.aspect not in allowed
            how = f" (to take it all the same: {as_option([one.aspect])})" if refused else ""
            findings.append(Finding(ERROR if refused else WARNING, "all", f"{one}{how}"))
    if any(finding.level == ERROR for finding in check(demos)):
        return findings
    _, said, reason = in_unit_range(demos, task)
    if said is not None:
        findings.append(Finding(WARNING, "all", said))
    if reason is not None:
        refused = task is not None and ACTIONS not in allowed
        how = f" (to have them clamped: {as_option([ACTIONS])})" if refused else ""
        findings.append(Finding(ERROR if refused else WARNING, "all", f"{reason}{how}"))
    return findings
