"""Roll out one episode after another and record what was observed, executed and earned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.collecting.actors import make_actor
from burnish.datasets.episodes import Episode
from burnish.datasets.formats.robosuite_states import model_xml
from burnish.envs import make_simulator
from burnish.envs.base import Floats, Obs, Step
from burnish.errors import BurnishError

if TYPE_CHECKING:
    from burnish.datasets.collecting.config import CollectConfig

STEPS_AFTER_SUCCESS = 3
ACTIONS_PER_ARM = 7  # OSC_POSE: six for the motion, the last for the gripper


class Recording(NamedTuple):
    """One rolled-out episode; `level` is that of its actor's skill, where there are several."""

    episode: Episode
    success: bool
    level: str


class Transition(NamedTuple):
    """What happened in one control step."""

    obs: Obs  # (Do,) or one record, before the action
    state: NDArray[np.float64] | None  # (S,) before the action
    action: Floats  # (Da,) as executed
    step: Step


class Recorder:
    """One simulator and its actors: rolls out any episode of a `CollectConfig`."""

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        self.simulator: Any = make_simulator(config.task)
        self.actors = [make_actor(config, behaviour) for behaviour in (config.behaviour, *config.mixture)]
        self.actor = self.actors[0]
        self._is_robosuite = config.task.suite == "robosuite"
        self._with_states = config.states and self._is_robosuite

    def record(self, index: int) -> Recording:
        """Episode `index`, from the environment seed `config.seed` + index."""
        self.actor = self.actors[index % len(self.actors)]
        transitions = list(self._roll_out(self.config.seed + index))
        if not transitions:
            raise BurnishError(
                f"episode {index}: the simulation was not finite in its first step: look at the simulator"
            )
        obs, states, actions, steps = zip(*transitions)
        by_key = self.simulator.obs_spec.by_key(np.stack([*obs, steps[-1].obs]))
        episode = Episode(
            name=f"demo_{index}",
            obs={key: values[:-1] for key, values in by_key.items()},
            actions=np.stack(actions),
            rewards=np.array([step.reward for step in steps], np.float32),
            terminated=np.array([step.terminated for step in steps]),
            final_obs={key: values[-1] for key, values in by_key.items()},
            states=np.stack(states) if self._with_states else None,
            model_file=model_xml(self.simulator.env) if self._with_states else None,
            faults=self.actor.faults.as_numbers(),
        )
        return Recording(episode, any(step.success for step in steps), self.actor.faults.level)

    def _roll_out(self, seed: int) -> Iterator[Transition]:
        # Noise of its own stream: the same for every behaviour, whatever the actor draws.
        actor_seed, noise_seed = np.random.SeedSequence([seed, 1]).spawn(2)
        noise_rng = np.random.default_rng(noise_seed)
        obs = self.simulator.reset(seed)
        self.actor.reset(self.simulator, np.random.default_rng(actor_seed))
        steps_left = self.config.task.max_episode_steps
        while steps_left > 0:
            state = self._state() if self._with_states else None
            action = self._executed(self.actor.act(obs), noise_rng)
            step = self.simulator.step(action)
            if not self.simulator.obs_spec.is_finite(step.obs):
                return  # the simulation blew up: the episode ends before that
            yield Transition(obs, state, action, step)
            obs = step.obs
            steps_left -= 1
            if step.success:
                steps_left = min(steps_left, STEPS_AFTER_SUCCESS)
            if step.terminated or step.truncated:
                return

    def _executed(self, action: Floats, rng: np.random.Generator) -> Floats:
        noise = self.actor.faults.scale * self.config.action_noise * rng.standard_normal(len(action))
        if self._is_robosuite:
            noise[ACTIONS_PER_ARM - 1 :: ACTIONS_PER_ARM] = 0.0
        return np.clip(action + noise, -1.0, 1.0).astype(np.float32)

    def _state(self) -> NDArray[np.float64]:
        return self.simulator.env.sim.get_state().flatten()
