"""Trainings of a second or two, of every kind, and whether two of them gave the same.

`prepare` makes what they start from. A run is in the folder `run` of its own working folder, so that what it writes
names the same paths wherever it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

EVALUATED = ("evaluation.episodes=2", "evaluation.n_envs=2", "evaluation.temperatures=[1.0]")
HOPPER = ("task=hopper", "task.max_episode_steps=40", *EVALUATED)
SMALL = ("policy.denoiser.hidden_dim=16", "policy.denoiser.n_layers=1", "policy.denoising_steps=5")
TRAINED = ("train.updates=60", "train.batch_size=16", "train.eval_every=20", "train.checkpoint_every=10")
FINETUNED = ("policy={base}/cloned", "n_envs=2", "eval_every=80", "checkpoint_every=40", "total_env_steps=240")
ON_POLICY = ("stage.ft_denoising_steps=3", "stage.n_steps=5", "stage.update_epochs=2", "stage.batch_size=10")
SMALL_CRITIC = ("stage.critic.hidden_dim=16", "stage.critic.n_layers=1")
OFF_POLICY = (
    *("stage.learning_starts=40", "stage.critic_warmup_updates=2", "stage.batch_size=8", "stage.buffer_size=400"),
    *("stage.demos={base}/hopper.hdf5", "stage.update_every=1", "stage.utd_ratio=0.1", *SMALL_CRITIC),
)
DRAWING = (*OFF_POLICY, "stage.old_policy_every=4")
SYNC = ("backend=sync", "evaluation.backend=sync")
WORKERS = ("backend=workers", "n_workers=2", "evaluation.backend=workers", "evaluation.n_workers=2")
RUN = "run_dir=run"


class Kind(NamedTuple):
    """What is run, and how often it is killed in the long form.

    Attributes:
        words: of the command; {base} is the folder of what it starts from.
        goes_on: the command that resumes it; None: the same words again.
        tries: in the long form.
    """

    words: tuple[str, ...]
    goes_on: str | None
    tries: int


def _finetune(stage: str, backend: tuple[str, ...], *words: str) -> tuple[str, ...]:
    return ("finetune", *HOPPER, f"stage={stage}", *FINETUNED, *backend, *words, RUN)


CLONING = ("pretrain", *HOPPER, "dataset={base}/hopper.hdf5", *SMALL, *TRAINED, RUN)
KINDS: dict[str, Kind] = {
    "bc": Kind((*CLONING, "evaluation.backend=sync"), "pretrain", 24),
    "bc-workers": Kind((*CLONING, "evaluation.backend=workers", "evaluation.n_workers=2"), "pretrain", 6),
    "dppo": Kind(_finetune("dppo_gym", SYNC, *ON_POLICY), "finetune", 24),
    "dppo-workers": Kind(_finetune("dppo_gym", WORKERS, *ON_POLICY), "finetune", 12),
    "dpmd": Kind(_finetune("dpmd_gym", SYNC, *DRAWING), "finetune", 24),
    "dpmd-workers": Kind(_finetune("dpmd_gym", WORKERS, *DRAWING), "finetune", 12),
    "sdac": Kind(_finetune("sdac_gym", SYNC, *DRAWING), "finetune", 24),
    "offline": Kind(
        _finetune("dpmd_gym", SYNC, *DRAWING, "offline.steps=40", "offline.report_every=5")
        + ("offline.checkpoint_every=10", "offline.eval_every=20", "total_env_steps=160"),
        "finetune",
        24,
    ),
    "sac": Kind(
        ("scratch", *HOPPER, "stage=sac", "network=gaussian", "n_envs=2", "backend=sync", "evaluation.backend=sync")
        + ("stage.batch_size=8", "total_env_steps=240", "eval_every=80", "checkpoint_every=40", RUN),
        "finetune",
        24,
    ),
    "compare-local": Kind(("compare", "{base}/local.yaml"), None, 16),
    "compare-ray": Kind(("compare", "{base}/ray.yaml"), None, 6),
}
MADE_FIRST = {
    "hopper.hdf5": ("data", "collect", "task=hopper", "task.max_episode_steps=100", "behaviour=sac", "episodes=3")
    + ("out=hopper.hdf5", "n_workers=1"),
    "cloned": ("pretrain", *HOPPER, "dataset=hopper.hdf5", *SMALL, *TRAINED, "evaluation.backend=sync")
    + ("run_dir=cloned",),
}
COMPARISON = """\
name: killed
run_dir: run
runner: {runner}
cores: 2
memory_gb: 4
cell_memory_gb: 0.5
tasks:
  hopper:
    pretrain: [{pretrain}]
methods:
  dppo: [stage=dppo_gym, {on_policy}]
  dpmd: [stage=dpmd_gym, {off_policy}]
settings: [{settings}]
seeds: [0]
total_env_steps: 160
"""


def comparison(runner: str, base: Path) -> str:
    """The YAML text of a comparison of two methods after a pretraining."""

    def listed(words: tuple[str, ...]) -> str:
        return ", ".join(f'"{word.format(base=base)}"' for word in words)

    return COMPARISON.format(
        runner=runner,
        pretrain=listed((*HOPPER[1:], "dataset={base}/hopper.hdf5", *SMALL, *TRAINED)),
        on_policy=listed(ON_POLICY),
        off_policy=listed(DRAWING),
        settings=listed((*HOPPER[1:], "n_envs=2", "eval_every=80", "checkpoint_every=40")),
    )


def differences(found: Path, expected: Path) -> list[str]:
    """What is not as in the unbroken run, in words: of one run, or of the runs of a comparison."""
    if (expected / "config.yaml").exists():
        return list(_of_run(found, expected))
    cells = sorted(path.parent.relative_to(expected) for path in expected.rglob("config.yaml"))
    return [f"{cell}: {each}" for cell in cells for each in _of_run(found / cell, expected / cell, UNSEEDED)]


UNSEEDED = ("python", "numpy")
"""Global generators that Burnish neither seeds nor draws from; in forks they are seeded, and so compared."""


def _of_run(found: Path, expected: Path, unseeded: tuple[str, ...] = ()) -> Iterator[str]:
    ours, theirs = _files(found), _files(expected)
    if lacking := sorted(theirs - ours - _not_needed(expected)):
        yield f"it lacks {', '.join(lacking)}"
    if more := sorted(ours - theirs):
        yield f"it has left {', '.join(more)}"
    for name in sorted(ours & theirs):
        one, other = found / name, expected / name
        if one.is_symlink() or other.is_symlink():
            if not (one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()):
                yield f"{name} stands for another checkpoint"
        elif one.is_dir() or other.is_dir():
            if not (one.is_dir() and other.is_dir()):
                yield f"{name} is no folder"
        elif (read := READERS.get(one.name, READERS.get(one.suffix))) is not None:
            try:
                same = _same(*(_without(unseeded, read(path)) for path in (one, other)))
            except Exception as error:
                yield f"{name} cannot be read: {type(error).__name__}: {error}"
            else:
                if not same:
                    yield f"{name} differs"


def _files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")} if run.is_dir() else set()


def _not_needed(run: Path) -> set[str]:
    """The checkpoints that are neither the latest nor the best: a run that saves its last one twice keeps fewer."""
    folder = run / "checkpoints"
    named = {path.resolve().name for path in (folder / "latest", folder / "best")}
    older = [path for path in folder.glob("step_*") if path.name not in named]
    return {str(path.relative_to(run)) for each in older for path in (each, *each.rglob("*"))}


def _json(path: Path) -> Any:
    return _untimed(json.loads(path.read_text()))


def _lines(path: Path) -> Any:
    return [_untimed(json.loads(line)) for line in path.read_text().splitlines()]


def _tensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _trainer(path: Path) -> Any:
    import torch

    return _untimed(torch.load(path, weights_only=True))


def _config(path: Path) -> Any:
    import yaml

    return {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in GIVEN_ANEW}


GIVEN_ANEW = ("device", "torch_threads", "wandb", "resume", "overwrite")
"""Keys that a resumed run may have otherwise."""
READERS = {
    ".json": _json,
    "metrics.jsonl": _lines,
    ".safetensors": _tensors,
    "trainer.pt": _trainer,
    "config.yaml": _config,
}
"""By name, or by ending. Pictures and logs are not compared."""
TIMED = ("training_seconds", "unlogged", "peak_memory_mib", "commit")
"""Keys of what the clock, the memory or git says."""


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not str(key).startswith("time/") and key not in TIMED}
        return {key: _untimed(item) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_untimed, value))
    return value


def _without(unseeded: tuple[str, ...], content: Any) -> Any:
    """The content of a trainer.pt without some of its generators; any other as it is."""
    if isinstance(content, dict) and isinstance(content.get("random"), dict):
        return content | {"random": {key: state for key, state in content["random"].items() if key not in unseeded}}
    return content


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)
