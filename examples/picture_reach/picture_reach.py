"""An environment of one's own, whose observations are a Dict of a vector and a small picture, and its expert."""

import gymnasium
import numpy as np

from burnish.datasets.collecting.actors import Actor

SIZE, NEAR = 16, 0.15  # pixels a side; distance at which the target is reached


class PictureReach(gymnasium.Env):
    """A point moves on the square [-1, 1]^2 to a target that is seen in the picture alone."""

    observation_space = gymnasium.spaces.Dict(
        position=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        picture=gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
    )
    action_space = gymnasium.spaces.Box(-0.2, 0.2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.target = self.np_random.uniform(-0.9, 0.9, (2, 2))
        return self.observation(), {}

    def step(self, action):
        self.position = np.clip(self.position + action, -1, 1)
        reached = bool(np.linalg.norm(self.position - self.target) < NEAR)
        return self.observation(), float(reached), reached, False, {"is_success": reached}

    def observation(self):
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        row, column = np.round((self.target + 1) / 2 * (SIZE - 1)).astype(int)
        picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, 0] = 255
        return {"position": self.position.astype(np.float32), "picture": picture}

    # with these a stopped run resumes in the midst of its episodes, bit for bit
    def get_state(self):
        generator = self.np_random.bit_generator.state
        whole = {name: str(number) for name, number in generator["state"].items()}  # of 128 bits
        return {"position": self.position, "target": self.target, "generator": generator | {"state": whole}}

    def set_state(self, state):
        self.position, self.target, generator = state["position"], state["target"], state["generator"]
        whole = {name: int(number) for name, number in generator["state"].items()}
        self.np_random.bit_generator.state = generator | {"state": whole}


class Expert(Actor):
    """Looks for the target in the picture and goes there; one in three of its steps is a random one."""

    def __init__(self, config):
        pass

    def reset(self, simulator, rng):
        self.rng = rng

    def act(self, obs):
        if self.rng.random() < 1 / 3:
            return self.rng.uniform(-1, 1, 2).astype(np.float32)
        target = np.argwhere(obs["picture"][..., 0]).mean(0) / (SIZE - 1) * 2 - 1
        return np.clip((target - obs["state"]) / 0.2, -1, 1).astype(np.float32)


gymnasium.register("PictureReach-v0", entry_point=PictureReach)
