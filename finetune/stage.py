"""What the loop and an algorithm agree on, and which algorithms there are.

Symbols: E environments, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np

from burnish.config import Checked
from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.policies.base import POLICIES, Policy, policy_class
from burnish.registry import find

STAGES = {
    "dppo": "burnish.finetune.algorithms.dppo:DPPO",
    "dpmd": "burnish.finetune.algorithms.dpmd:DPMD",
    "sdac": "burnish.finetune.algorithms.sdac:SDAC",
    "idql": "burnish.finetune.algorithms.idql:IDQL",
    "qsm": "burnish.finetune.algorithms.qsm:QSM",
    "qvpo": "burnish.finetune.algorithms.qvpo:QVPO",
    "dacer": "burnish.finetune.algorithms.dacer:DACER",
    "dipo": "burnish.finetune.algorithms.dipo:DIPO",
    "dql": "burnish.finetune.algorithms.dql:DQL",
    "calql": "burnish.finetune.algorithms.calql:CalQL",
    "rlpd": "burnish.finetune.algorithms.rlpd:RLPD",
    "qc": "burnish.finetune.algorithms.qc:QChunking",
    "dsrl": "burnish.finetune.algorithms.dsrl:DSRL",
    "residual": "burnish.finetune.algorithms.residual:Residual",
    "ogpo": "burnish.finetune.algorithms.ogpo:OGPO",
    "best_of_n": "burnish.finetune.algorithms.best_of_n:BestOfN",
    "frozen": "burnish.finetune.baselines.frozen:Frozen",
    "sac": "burnish.finetune.baselines.sac:SAC",
    "td3": "burnish.finetune.baselines.td3:TD3",
    "ppo": "burnish.finetune.baselines.ppo:PPO",
}
"""Name -> module:class; the class names its config in `Config`. One line for each algorithm. Others are registered by
plugins, or named as module:Class."""


class Setting(NamedTuple):
    """What a stage is given besides its own config."""

    task: TaskConfig
    n_envs: int
    seed: int
    pretrained: bool = True  # the policy is one, its weights are to be kept
    ends_at_success: bool = False  # so do the episodes, and the demonstrations with them
    allow: Sequence[str] = ()  # in what the demonstrations' environment may differ from the task


@dataclass(frozen=True)
class StageConfig(Checked):
    """Base of the stages' configs: `name` chooses the stage."""

    EXPLORATION: ClassVar[str] = ""  # the key of the noise that it acts with
    DEMONSTRATIONS: ClassVar[str] = "demos"  # that of `demonstrations`, where it has any
    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ()  # the keys that say when the first update is due

    name: str

    @property
    def demonstrations(self) -> str | None:
        """What it learns from besides its own steps: a file, or "task" (those the task names); None: nothing."""
        return None

    @classmethod
    def choose(cls, mapping: Mapping[str, Any]) -> type[StageConfig]:
        """The config of the stage that `mapping` names. Raises BurnishError where there is none of that name."""
        return stage_class(str(mapping.get("name"))).Config


class Stage(ABC):
    """An algorithm: how to act, what to store, when and how to update. The loop knows nothing else about it."""

    Config: ClassVar[type[StageConfig]]
    kinds: ClassVar[tuple[str, ...] | None] = ("diffusion", "flow")  # of policies that it trains; None: any
    learns: ClassVar[bool] = True
    trains_policy: ClassVar[bool] = True  # False: it learns to choose among the chunks of a policy that stays
    online: ClassVar[bool] = True  # False: it learns from demonstrations alone
    package: ClassVar[str] = ""  # that it needs, of the `extra`
    extra: ClassVar[str] = ""
    PARTS: ClassVar[dict[str, str]] = {}  # methods inside of `update` that a profile tells apart -> what they do
    policy: Policy  # what is evaluated and saved
    chunks_per_update: int  # chunks in each environment before the first update
    random_steps: int = 0  # environment steps of random actions at the start
    n_candidates: int = 1  # chunks sampled for each that is executed, if the policy has a critic to choose by
    data: dict[str, Any] | None = None  # fingerprint of the demonstrations that it learns from, where there are any

    @classmethod
    def trains(cls, kind: str) -> bool:
        """Whether it trains policies of that kind; one from outside the package counts as what it is a subclass of."""
        if cls.kinds is None or kind in cls.kinds:
            return True
        return kind not in POLICIES and issubclass(policy_class(kind), tuple(map(policy_class, cls.kinds)))

    @classmethod
    def check_installed(cls, name: str) -> None:
        """Raise BurnishError where the package that the stage, called `name`, needs is missing."""
        if cls.package and find_spec(cls.package.replace("-", "_")) is None:
            raise BurnishError(f"stage={name} needs {cls.package}: pip install 'burnish[{cls.extra}]'")

    def reset_seeds(self) -> list[int] | None:
        """Asked before each `act`: seeds (E,) where all episodes shall begin anew now; None: they go on."""
        return None

    @abstractmethod
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Raw observations (E, To, Do) -> raw actions to execute (E, Ta, Da), with exploration."""

    @abstractmethod
    def observe(self, step: ChunkStep) -> None:
        """Take what the actions of the last `act` led to."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether `update` is due."""

    @abstractmethod
    def update(self) -> dict[str, float]:
        """Learn -> metrics. Called again before the next action where `ready` still says so."""

    def why_not_offline(self) -> str | None:
        """Why it cannot learn from demonstrations alone, by `update_offline`; None where it can."""
        return "it learns from its own steps alone"

    def update_offline(self, gradient_steps: int) -> dict[str, float]:
        """So many gradient steps on demonstrations alone -> metrics, `gradient_steps` (all so far) among them."""
        raise NotImplementedError

    @abstractmethod
    def cut_episodes(self) -> None:
        """The environments were reset from outside (a resumed run whose simulator cannot be restored): what was
        stored last is not followed by what comes next."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the future: weights, optimizers, statistics, generators, stored data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def stage_class(name: str) -> type[Stage]:
    """The stage called `name`.

    Raises:
        NotInstalled: it is module:Class, and there is no such module.
        BurnishError: there is none, or it is no stage.
    """
    return find("stage", name, STAGES, "stage", base=Stage, keys=StageConfig)
