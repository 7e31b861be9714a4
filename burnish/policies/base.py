"""What every kind of policy has in common: raw observations in, raw action chunks out, a folder that evaluates alone.

Symbols: B batch, N candidate chunks for an observation, To observation steps, Tp predicted and Ta executed action
steps, Do and Da dimensions, W an observation's numbers or bytes (`burnish.observations`).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from burnish.config import Checked, WrongValue, key, parse
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.machine.allocation import AtMost
from burnish.machine.checksums import verify, write_checksums
from burnish.machine.disk import save_folder
from burnish.networks import CriticConfig, QEnsemble
from burnish.networks.encoders.encoder import Encoder, EncoderConfig
from burnish.networks.q import NETWORKS
from burnish.networks.weights import load_weights
from burnish.observations import STATE, ObsSpec
from burnish.policies.folder import DESCRIPTION, FORMAT, WEIGHTS, policy_folder, read_description, require_keys
from burnish.policies.normalizer import Normalizer
from burnish.registry import address, find

LARGEST, SMALL = 4, 2**26  # what networks may take while they are made: times the weights' bytes, and bytes

P = TypeVar("P", bound="Policy")
N = TypeVar("N", bound=nn.Module)
MOST_STEPS = 10_000  # of a chunk, of an observation, of a chain: their tables are made when a config is read
POLICIES = {
    "diffusion": "burnish.policies.diffusion:DiffusionPolicy",
    "flow": "burnish.policies.flow:FlowPolicy",
    "gaussian": "burnish.policies.gaussian:GaussianPolicy",
    "edited": "burnish.policies.edited:EditedPolicy",
    "steered": "burnish.policies.steered:SteeredPolicy",
}
"""Kind -> module:class; the class names its config in `Config`. Others are registered by plugins, or named as
module:Class."""


@dataclass(frozen=True, kw_only=True)
class ChunkConfig(Checked):
    """What the config of every kind of policy has; `kind` chooses it."""

    OPTION: ClassVar[str]  # the one of the config group `policy` that makes such a policy

    kind: str = key()
    n_obs_steps: int = key(1, "To, observation steps that it sees", least=1, most=MOST_STEPS)
    n_action_steps: int = key(4, "Ta, executed action steps", least=1, most=MOST_STEPS)
    encoder: EncoderConfig = key(factory=EncoderConfig, doc="of sensors")
    obs_normalization: Literal["min_max", "mean_std", "none"] = key(
        "min_max", "of each dimension, over the demonstrations"
    )
    action_normalization: Literal["min_max", "mean_std", "none"] = key(
        "min_max", "of each dimension, over the demonstrations"
    )
    temperature: float = key(1.0, "tau, factor on all noise with which it acts; 0: none", least=0)
    mean_of: int = key(1, "chunks that are sampled for each that is executed, their mean", least=1, most=MOST_STEPS)

    @classmethod
    def choose(cls, mapping: Mapping[str, Any]) -> type[ChunkConfig]:
        """The config of the kind that `mapping` names. Raises BurnishError where there is none of that name."""
        return policy_class(str(mapping.get("kind", "diffusion"))).Config  # the first policies do not say

    @property
    def horizon(self) -> int:
        """Tp"""
        return self.n_action_steps

    def companions(self) -> dict[str, Any]:
        """Files beside policy.json that follow from it, for other programs to read: name -> content, as JSON."""
        return {}


class Policy(nn.Module, ABC):
    """See the module's docstring.

    Args:
        config: of the class's `Config`.
        obs_spec: what it sees; a number: a state of so many, Do.
        action_dim: Da.
        obs_keys: the observation keys that make up Do, in order.
        task: name of the task it was trained for; for information.
    """

    Config: ClassVar[type[ChunkConfig]]
    config: ChunkConfig

    def __init__(
        self, config: ChunkConfig, obs_spec: ObsSpec | int, action_dim: int, obs_keys: list[str], task: str = ""
    ):
        super().__init__()
        self.config = config
        self.obs_spec = ObsSpec.of_state(obs_spec) if isinstance(obs_spec, int) else obs_spec
        self.obs_dim, self.action_dim = self.obs_spec.state_dim, action_dim
        self.obs_keys = list(obs_keys)
        self.task = task
        self.trained_in: dict[str, Any] | None = None  # the whole task, as plain data
        self.trained_with: dict[str, str] = {}  # versions of what simulates it
        self.plugins: list[str] = []  # of the run that made it: the task may need them, the policy does not
        self.obs_normalizer = Normalizer(self.obs_dim)  # of the state; sensors are for their encoders
        self.action_normalizer = Normalizer(action_dim)
        self.critic: QEnsemble | None = None
        self.critic_config: CriticConfig | None = None

    def set_sampling(
        self,
        temperature: float | None = None,
        mean_of: int | None = None,
        sampler: str | None = None,
        sampler_steps: int | None = None,
    ) -> None:
        """Act with this temperature, the mean of so many chunks, this sampler in so many steps from now on; None leaves
        what is, but a sampler that is given without steps takes its own number.

        Raises:
            WrongValue: it cannot act so.
        """
        given: dict[str, Any] = {
            "temperature": temperature,
            "mean_of": mean_of,
            "sampler": sampler,
            "sampler_steps": sampler_steps,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if sampler is not None:
            changes["sampler_steps"] = sampler_steps
        for name, value in changes.items():
            if not hasattr(self.config, name):
                raise WrongValue(f"{name}={value}: a {self.config.kind} policy has no sampler")
        self.sample_as(replace(self.config, **changes))

    def sample_as(self, config: ChunkConfig) -> None:
        """Take this config, which differs in nothing but how it samples."""
        self.config = config

    @contextmanager
    def sampling(
        self,
        temperature: float | None = None,
        mean_of: int | None = None,
        sampler: str | None = None,
        sampler_steps: int | None = None,
    ) -> Iterator[None]:
        """`set_sampling` for the time of a `with`."""
        before = self.config
        self.set_sampling(temperature, mean_of, sampler, sampler_steps)
        try:
            yield
        finally:
            self.sample_as(before)

    @property
    def features(self) -> int:
        """F, what networks see of an observation."""
        return self.config.encoder.count(self.obs_spec, self.config.n_obs_steps)

    def fit_normalizers(self, obs: Tensor, actions: Tensor) -> None:
        """Take the statistics of raw observations (N, W) and actions (N, Da)."""
        if STATE in self.obs_spec.parts:
            self.obs_normalizer.fit(self.obs_spec.split(obs)[STATE], self.config.obs_normalization)
        self.action_normalizer.fit(actions, self.config.action_normalization)

    def typical_obs(self) -> np.ndarray:
        """A raw observation, as `act` takes it with B = 1, whose state is the normalizer's middle."""
        obs = self.obs_spec.zeros(1, self.config.n_obs_steps)
        if STATE in self.obs_spec.parts:
            self.obs_spec.part(obs, STATE)[:] = self.obs_normalizer.offset.cpu().numpy()
        return obs

    def blank_obs(self, n: int) -> Tensor:
        """Prepared observations of zeros (n, To * W), as an example of them."""
        width = self.config.n_obs_steps * self.obs_spec.width
        return torch.zeros(n, width, dtype=self.obs_spec.dtype, device=self.device)

    def seeing(self, network: N) -> N:
        """`network`, with an encoder of its own for this policy's observations."""
        network.encoder = Encoder(self.obs_spec, self.config.n_obs_steps, self.config.encoder)
        return network

    def add_critic(self, config: CriticConfig) -> QEnsemble:
        """A critic of prepared observations and of what `critic_input` gives, freshly initialised."""
        chunk = torch.zeros(1, self.config.horizon, self.action_dim, device=self.device)
        dim = self.critic_input(chunk).shape[-1]
        self.critic = self.seeing(QEnsemble(config, self.features, dim)).to(self.device)
        self.critic_config = config
        return self.critic

    def critic_input(self, x: Tensor) -> Tensor:
        """What a critic sees of normalised chunks (..., Tp, Da): the executed part, flat (..., Ta * Da)."""
        return self.executed(x).flatten(-2)

    def values(self, obs: Tensor, x: Tensor, critic: QEnsemble | None = None) -> Tensor:
        """Least Q of the ensemble's members for candidates, as they would be executed: within their bounds.

        Args:
            obs: prepared (B, To * W)
            x: normalised chunks (B, N, Tp, Da)
            critic: None for the policy's own.

        Returns:
            (B, N)
        """
        critic = critic or self.critic
        assert critic is not None
        return critic(obs, self.critic_input(x)).amin(0)

    @property
    def device(self) -> torch.device:
        return self.obs_normalizer.offset.device

    @property
    def sampler_steps(self) -> int | None:
        """S, calls of the network for one chunk; None of a policy without a sampler."""
        return None

    @property
    def doubt(self) -> str | None:
        """Why the way in which it samples can give no good action, in a line; None where nothing speaks against it."""
        return None

    @property
    def least_rows(self) -> int:
        """Rows from which on a row's bits do not depend on their number (see `burnish.evaluation.evaluate.act`)."""
        return 4

    @abstractmethod
    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What behaviour cloning minimises: a scalar.

        Args:
            obs: raw (B, To, W)
            actions: raw (B, Tp, Da)
            generator: of all that is random in it.
        """

    @abstractmethod
    def noise_shape(self, candidates: int = 1) -> tuple[int, ...]:
        """Of the standard normal numbers that decide the chunk for one observation, of `candidates` chunks."""

    @abstractmethod
    def predict(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None = None, candidates: int = 1
    ) -> Tensor:
        """The normalised chunks (B, Tp, Da) for prepared observations (B, To * W), see `normalized_obs` and `act`."""

    @abstractmethod
    def within_bounds(self, x: Tensor) -> Tensor:
        """Normalised actions (..., Da) clamped to what can be executed."""

    def normalized_obs(self, obs: np.ndarray | Tensor) -> Tensor:
        """Raw (B, To, Do), records (B, To) or either as a tensor (B, To, W) -> prepared for the networks: the state
        normalised, sensors as they are, flattened (B, To * W)."""
        spec, raw = self.obs_spec, self.obs_spec.tensor(obs, self.device)
        if not spec.is_state and STATE not in spec.parts:
            return raw.flatten(1)
        state = raw if spec.is_state else spec.split(raw)[STATE]
        return spec.with_state(raw, self.obs_normalizer.normalize(state)).flatten(1)

    def executed(self, x: Tensor) -> Tensor:
        """Normalised chunks (..., Tp, Da) -> the normalised part that is executed (..., Ta, Da), within its bounds."""
        return self.within_bounds(x[..., : self.config.n_action_steps, :])

    def executed_actions(self, x: Tensor) -> Tensor:
        """Normalised chunks (..., Tp, Da) -> raw actions to execute (..., Ta, Da)."""
        return self.action_normalizer.unnormalize(self.executed(x))

    @torch.no_grad()
    def act(
        self,
        obs: np.ndarray | Tensor | Mapping[str, np.ndarray],
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        candidates: int = 1,
    ) -> np.ndarray | Tensor:
        """Raw observations (B, To, Do) -> raw actions (B, Ta, Da), numpy for numpy, tensors for tensors.

        Args:
            obs: of a policy with sensors records (B, To), as `ObsSpec.record` makes them. Or by name: key ->
                (B, To, ...) of the task's `obs_keys`, and of its sensors.
            noise: `noise_shape` with B behind its first dimension, e.g. (S + 1, B, Tp, Da) for a diffusion policy,
                (S + 1, B, N, Tp, Da) for N candidates; None draws it with `generator`.
            candidates: N; of more than one the critic's best is executed.

        Raises:
            BurnishError: observations of another shape, or several candidates without a critic.
        """
        if isinstance(obs, Mapping):
            obs = self._by_name(obs)
        self._check_shape(obs)
        self.check_candidates(candidates)
        normalized = self.normalized_obs(obs)
        actions = self.executed_actions(self.predict(normalized, noise, generator, candidates))
        return actions.cpu().numpy() if isinstance(obs, np.ndarray) else actions

    def _by_name(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Observations by the names of the task's keys and sensors, as one array."""
        spec = self.obs_spec
        keys = self.obs_keys if spec.state_dim else []
        missing = [name for name in (*keys, *spec.sensors) if name not in obs]
        if missing:
            raise BurnishError(
                f"observations {', '.join(obs)}: expected {', '.join([*keys, *spec.sensors])}; {missing[0]} is missing"
            )
        return spec.of_keys(obs, keys, leading=2)

    def _check_shape(self, obs: np.ndarray | Tensor) -> None:
        To, spec = self.config.n_obs_steps, self.obs_spec
        if isinstance(obs, np.ndarray) and not spec.is_state:
            expected, said = spec.zeros(1, To), f"records (B, To) = (B, {To}) of {spec}"
            if obs.dtype != expected.dtype or obs.shape[1:] != expected.shape[1:]:
                raise BurnishError(f"observations of shape {obs.shape} and type {obs.dtype}: expected {said}")
        elif tuple(obs.shape[1:]) != (To, spec.width):
            raise BurnishError(
                f"observations of shape {tuple(obs.shape)}: expected (B, To, Do) = (B, {To}, {spec.width})"
            )

    def check_candidates(self, candidates: int) -> None:
        """Raise BurnishError where one of several candidates would have to be chosen without a critic, or of none."""
        if candidates < 1:
            raise BurnishError(f"candidates={candidates}: expected at least 1")
        if candidates > 1 and self.config.mean_of > 1:
            raise BurnishError(
                f"candidates={candidates} and mean_of={self.config.mean_of}: expected one of them to be 1"
            )
        if candidates > 1 and self.critic is None:
            raise BurnishError(
                f"candidates={candidates}: this policy has no critic to choose among several candidates with "
                "(fine-tunings that learn a critic keep it in the policy)"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `policy.json`, `policy.safetensors` and what goes with them into `folder`, whole or not at all."""
        save_folder(Path(folder), self.write)

    def write(self, folder: Path) -> None:
        """Write the files, with checksums, into an existing folder. Raises OSError where the disk refuses."""
        from safetensors.torch import save

        # not `save_file`: what the disk refuses is no OSError there
        weights = save({name: tensor.contiguous() for name, tensor in self.state_dict().items()})
        (folder / WEIGHTS).write_bytes(weights)
        described = {DESCRIPTION: self.description(), **self.config.companions()}
        for name, content in described.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        write_checksums(folder, [WEIGHTS, *described])

    def description(self) -> dict[str, Any]:
        """The content of policy.json: all that `from_description` needs to make such a policy."""
        return {
            "format": FORMAT,
            "kind": address("policy", self.config.kind),
            "task": self.task,
            **({"trained_in": self.trained_in} if self.trained_in else {}),
            **({"trained_with": self.trained_with} if self.trained_with else {}),
            **({"plugins": self.plugins} if self.plugins else {}),
            "obs_dim": self.obs_dim,
            **({"sensors": self.obs_spec.sensors_as_json()} if self.obs_spec.sensors else {}),
            "action_dim": self.action_dim,
            "obs_keys": self.obs_keys,
            "config": asdict(self.config) | {"kind": address("policy", self.config.kind)},
            "critic": self.critic_config and asdict(self.critic_config),
        }

    @classmethod
    def from_description(cls: type[P], description: dict[str, Any]) -> P:
        """A policy without its weights. Raises BurnishError, KeyError or TypeError where it does not make sense."""
        config = parse(cls.Config, description["config"], where="config")
        obs_spec = ObsSpec.from_json(description["obs_dim"], description.get("sensors"))
        policy = cls(config, obs_spec, description["action_dim"], description["obs_keys"], description["task"])
        policy.trained_in = description.get("trained_in")
        policy.trained_with = description.get("trained_with", {})
        policy.plugins = description.get("plugins", [])
        policy.add_described_critic(description.get("critic"))
        return policy

    def add_described_critic(self, described: Mapping[str, Any] | None) -> None:
        """The critic that policy.json tells of, if it does, without its weights."""
        if not described:
            return
        kind = described.get("kind", "q")  # the first ones do not tell
        if kind not in NETWORKS:
            raise BurnishError(f"critic.kind={kind}: expected {' or '.join(NETWORKS)}")
        require_keys(NETWORKS[kind], described, "critic")
        self.add_critic(parse(NETWORKS[kind], described, where="critic"))

    @classmethod
    def load(cls: type[P], folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> P:
        """Read a policy folder of this kind, or the latest checkpoint of a run folder.

        Raises:
            BurnishError: it holds another kind, a file is missing or damaged, or the two do not belong together.
        """
        folder = policy_folder(folder)
        description = read_description(folder)
        if policy_class(description["kind"]) is not cls:
            raise BurnishError(f"{folder} holds a {description['kind']} policy: expected a {cls.__name__}")
        path, weights = folder / DESCRIPTION, folder / WEIGHTS
        try:
            require_keys(cls.Config, description["config"], "config")
            with told_as("it is damaged"), AtMost(LARGEST * weights.stat().st_size + SMALL, f"{WEIGHTS} is too small"):
                policy = cls.from_description(description)
        except BurnishError as error:
            raise BurnishError(f"{path}: {error}") from error
        policy.load_weights(weights)
        return policy.to(device).eval()

    def load_weights(self, path: Path) -> None:
        """Take the weights from `path`. Raises BurnishError where they are damaged or those of another policy."""
        verify(path)
        load_weights(self, path, DESCRIPTION)


def policy_class(kind: str) -> type[Policy]:
    """The class of one kind of policies.

    Raises:
        NotInstalled: it is module:Class, and there is no such module.
        BurnishError: there is none, or it is no policy.
    """
    return find("policy", kind, POLICIES, "kind", base=Policy, keys=ChunkConfig)
