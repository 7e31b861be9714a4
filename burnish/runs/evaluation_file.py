"""evaluation.json and its siblings: what was measured, in which episodes, and how the numbers came about.

Here alone the keys of these files stand. `burnish.evaluation` writes them; comparisons, the demo and whoever else wants
a run's numbers read them, those of older versions as well: what these do not tell is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from burnish.errors import BurnishError
from burnish.runs.json_file import read_json, told_of, write_json
from burnish.runs.origin import Origin

EVALUATION = "evaluation.json"  # of the last checkpoint, one sample for each chunk
BEFORE = "evaluation_before.json"  # of what a fine-tuning began from
SELECTED = "evaluation_selected.json"  # of the last checkpoint, the best of several candidates by its critic
AT_BEST_TEMPERATURE = "evaluation_best_temperature.json"  # of the last checkpoint, at the temperature that suits it
AT_TEMPERATURE = "evaluation_temperature{}.json"  # of a policy that stays as it is, at each one tried
OLD_VERSIONS = ("burnish", "torch")  # what evaluation.json told before it had `versions`


class EvaluationSummary(NamedTuple):
    """What an evaluation gave, means over its episodes; `low` and `high` are the ends of 95 % intervals.

    It stands in three files, under these names but for `KEYS`: an evaluation's own, summary.json and metrics.jsonl.
    """

    episodes: int
    success_rate: float
    success_rate_low: float  # Wilson's interval
    success_rate_high: float
    mean_return: float
    return_low: float  # bootstrap interval
    return_high: float
    episode_length: float  # primitive steps
    nonfinite_episodes: int
    latency_ms: float | None  # median time of one `act` for one observation; None: not measured

    def value(self, measure: str) -> float:
        """The number that `measure`, "success_rate" or "return", names."""
        return float(self.to_json()[measure])

    def to_json(self) -> dict[str, Any]:
        return {KEYS.get(name, name): value for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EvaluationSummary:
        """Raises KeyError where a number is missing."""
        names = [name for name in cls._fields if name != "latency_ms"]
        found = {name: content[KEYS.get(name, name)] for name in names}
        return cls(**found, latency_ms=content.get(KEYS["latency_ms"]))

    def metrics(self, prefix: str = "eval") -> dict[str, Any]:
        """Under the keys of metrics.jsonl: `eval/...`, and `time/...` for what no rerun repeats."""
        content = self.to_json()
        latency = content.pop(KEYS["latency_ms"])
        return {f"{prefix}/{key}": value for key, value in content.items()} | {f"time/{prefix}_latency_ms": latency}

    @classmethod
    def from_metrics(cls, line: Mapping[str, Any], prefix: str = "eval") -> EvaluationSummary | None:
        """Of a line of metrics.jsonl; None where it has no evaluation under this prefix."""
        if f"{prefix}/episodes" not in line:
            return None
        start = f"{prefix}/"
        content = {key.removeprefix(start): value for key, value in line.items() if key.startswith(start)}
        return cls.from_json(content | {KEYS["latency_ms"]: line.get(f"time/{prefix}_latency_ms")})


KEYS = {"mean_return": "return", "latency_ms": "time/latency_ms"}
"""A field's key in the files, where that is no name in Python."""


@dataclass(frozen=True)
class About:
    """How an evaluation's numbers came about.

    Attributes:
        policy: its folder, or "untrained".
        weights: SHA-256 of its weights; None for an untrained one, and of older runs.
        task, evaluation: their configurations, as config.yaml has them.
    """

    policy: str
    weights: str | None
    task: dict[str, Any]
    evaluation: dict[str, Any]
    origin: Origin

    def to_json(self) -> dict[str, Any]:
        about = {"policy": self.policy, "weights": self.weights, "task": self.task, "evaluation": self.evaluation}
        return about | self.origin._asdict()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> About:
        old = {name: str(content[name]) for name in OLD_VERSIONS if name in content}
        return cls(
            policy=content.get("policy", ""),
            weights=content.get("weights"),
            task=content.get("task", {}),
            evaluation=content.get("evaluation", {}),
            origin=Origin(
                commit=str(content.get("commit", "")),
                versions=content.get("versions") or old,
                machine=str(content.get("machine", "")),
                compiled_networks=content.get("compiled_networks"),
            ),
        )


@dataclass(frozen=True)
class EvaluationFile:
    """The content of a file; an entry per episode in `seeds`, `success`, `returns` and `lengths`.

    `temperature`, `mean_of`, `sampler` and `sampler_steps` (S, calls of the network for a chunk) are how the policy
    sampled; None: older files do not tell, or it has no sampler.
    """

    about: About
    confidence: float | None  # of the intervals in `summary`
    summary: EvaluationSummary
    seeds: list[int]
    success: list[bool]
    returns: list[float]
    lengths: list[int]
    temperature: float | None = None
    mean_of: int | None = None
    sampler: str | None = None
    sampler_steps: int | None = None

    @property
    def candidates(self) -> int:
        """Chunks sampled for each that was executed."""
        return int(self.about.evaluation.get("candidates", 1))

    def values(self, measure: str) -> list[float]:
        """Of every episode the success (0 or 1) or the return, as `measure` ("success_rate" or "return") says."""
        by_measure: dict[str, Sequence[float]] = {"success_rate": self.success, "return": self.returns}
        return [float(value) for value in by_measure[measure]]

    def write(self, path: Path) -> None:
        """Raises BurnishError where it cannot be written."""
        content = {
            **self.about.to_json(),
            "temperature": self.temperature,
            "mean_of": self.mean_of,
            "sampler": self.sampler,
            "sampler_steps": self.sampler_steps,
            "confidence": self.confidence,
            "summary": self.summary.to_json(),
            "seeds": self.seeds,
            "success": self.success,
            "return": self.returns,
            "length": self.lengths,
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> EvaluationFile:
        """Raises BurnishError, naming the file, where it is missing or damaged."""
        content = read_json(path)
        with told_of(path):
            return cls(
                about=About.from_json(content),
                confidence=content.get("confidence"),
                summary=EvaluationSummary.from_json(content["summary"]),
                seeds=content["seeds"],
                success=content["success"],
                returns=content["return"],
                lengths=content["length"],
                temperature=content.get("temperature"),
                mean_of=content.get("mean_of"),
                sampler=content.get("sampler"),
                sampler_steps=content.get("sampler_steps"),
            )


def weights_at_start(run: Path) -> str | None:
    """The SHA-256 of what a fine-tuning began from; None before its first evaluation, and of older runs."""
    try:
        weights: str | None = read_json(run / BEFORE).get("weights")
    except BurnishError:
        return None
    return weights
