"""Short runs of every kind, and the digests of what they wrote: the same before and after a change of the code's shape.

    python tests/short_runs.py FOLDER     runs all of them there -> FOLDER/digests.json

The code that runs is the one on PYTHONPATH, so that two commits can be compared (test_same_as_before.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

EVALUATION = ("evaluation.episodes=4", "evaluation.n_envs=4")
LIFT = ("task=lift", *EVALUATION)
HOPPER = ("task=hopper", "dataset=hopper.hdf5", *EVALUATION)
OFF_POLICY = (
    "stage.learning_starts=64",
    "stage.critic_warmup_updates=2",
    "stage.batch_size=32",
    "stage.demos=hopper.hdf5",
)
REFRESH = "stage.old_policy_every=4"

RUNS: dict[str, tuple[str, ...]] = {
    "pretrain-lift": ("pretrain", *LIFT, "train.epochs=2"),
    "pretrain-hopper": ("pretrain", *HOPPER, "train.epochs=2"),
    "pretrain-hopper-unet": (
        *("pretrain", *HOPPER, "policy=unet", "train.epochs=1", "train.batch_size=64"),
        *("policy.denoiser.channels=[16,32]", "policy.sampler=ddim", "evaluation.episodes=16", "evaluation.n_envs=16"),
    ),
    "pretrain-gaussian": ("pretrain", *HOPPER, "policy=gaussian", "train.epochs=2"),
    "dppo-lift": (
        *("finetune", *LIFT, "stage=dppo", "policy=pretrain-lift", "n_envs=4", "backend=sync"),
        *("stage.n_steps=5", "stage.update_epochs=2", "stage.batch_size=50", "total_env_steps=240", "eval_every=160"),
    ),
    "dppo-hopper": (
        *("finetune", "task=hopper", *EVALUATION, "stage=dppo_gym", "policy=pretrain-hopper", "n_envs=4"),
        *("backend=workers", "n_workers=2", "stage.n_steps=20", "stage.batch_size=200", "total_env_steps=960"),
    ),
    "dppo-scratch": (
        *("scratch", "task=inverted_double_pendulum", *EVALUATION, "stage=dppo_scratch", "n_envs=4", "eval_every=0"),
        *("backend=sync", "stage.n_steps=20", "stage.batch_size=100", "total_env_steps=400"),
    ),
    "dpmd-lift": (
        *("finetune", *LIFT, "stage=dpmd", "policy=pretrain-lift", "n_envs=4", "backend=workers", "n_workers=1"),
        *(*OFF_POLICY[:-1], REFRESH, "total_env_steps=320"),
    ),
    "dpmd-hopper": (
        *("finetune", "task=hopper", *EVALUATION, "stage=dpmd_gym", "policy=pretrain-hopper", "n_envs=4"),
        *("backend=sync", *OFF_POLICY, REFRESH, "total_env_steps=320"),
    ),
    "dpmd-scratch": (
        *("scratch", "task=hopper", *EVALUATION, "stage=dpmd_scratch", "n_envs=4", "backend=sync", "eval_every=0"),
        *(*OFF_POLICY[:3], "stage.random_steps=64", "total_env_steps=320"),
    ),
    "sdac-hopper": (
        *("finetune", "task=hopper", *EVALUATION, "stage=sdac_gym", "policy=pretrain-hopper", "n_envs=4"),
        *("backend=sync", *OFF_POLICY, REFRESH, "total_env_steps=320"),
    ),
    "best-of-n-hopper": (
        *("finetune", "task=hopper", *EVALUATION, "stage=best_of_n_gym", "policy=pretrain-hopper", "n_envs=4"),
        *("backend=workers", "n_workers=2", *OFF_POLICY, "total_env_steps=320"),
    ),
    "sac": (
        *("scratch", "task=hopper", *EVALUATION, "stage=sac", "network=gaussian", "n_envs=4", "backend=sync"),
        *("stage.batch_size=32", "stage.demos=hopper.hdf5", "total_env_steps=320", "eval_every=0"),
    ),
    "td3": (
        *("scratch", "task=hopper", *EVALUATION, "stage=td3", "network=gaussian", "n_envs=4", "backend=sync"),
        *("stage.batch_size=32", "total_env_steps=320", "eval_every=0"),
    ),
    "ppo": (
        *("finetune", "task=hopper", *EVALUATION, "stage=ppo", "policy=pretrain-gaussian", "n_envs=4"),
        *("backend=sync", "stage.n_steps=16", "stage.batch_size=16", "stage.n_epochs=2", "total_env_steps=400"),
    ),
}
COLLECT = ("data", "collect", "task=hopper", "behaviour=sac", "episodes=3", "out=hopper.hdf5", "n_workers=1")


def run_all(folder: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Digests of the runs of those names, made in `folder`, after what they start from."""
    try:
        from burnish.commands.cli import main as burnish
    except ImportError:  # a commit before the move
        from burnish.cli import main as burnish  # type: ignore[import-not-found, no-redef]

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, words in {"collect": COLLECT, **{name: RUNS[name] for name in names}}.items():
        settings = () if name == "collect" else (f"run_dir={name}", "seed=3")
        if status := burnish([*words, *settings]):
            raise SystemExit(f"{name} ended with status {status}")
    return {name: digests(Path(name)) for name in names}


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of a run's metrics (without the time that they took), and of its last weights."""
    from safetensors.torch import load_file

    metrics = hashlib.sha256()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        numbers = {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        metrics.update(json.dumps(numbers, sort_keys=True).encode())
    weights = hashlib.sha256()
    latest = max((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for name, tensor in sorted(load_file(latest / "policy.safetensors").items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.numpy().tobytes())
    return {"metrics": metrics.hexdigest(), "weights": weights.hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS, metavar="RUN", help=", ".join(RUNS))
    options = parser.parse_args()
    results = run_all(options.folder.absolute(), options.runs)
    Path("digests.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
