"""What is damaged: for each reader a good file or folder, how it is damaged, and how it is read.

`read` gives what was understood as bytes, to be compared with that of the undamaged one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chaos import mutations
from chaos.tiny_runs import HOPPER, KINDS, MADE_FIRST
from chaos.warm import start_burnish, wait

ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.5.2",
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False, "camera_names": ["agentview"]},
}
CSV = "\n".join(
    ["episode,step,pos.0,pos.1,gripper,action.0,action.1,reward,terminated"]
    + [f"{e},{t},{0.1 * t},{-0.2 * t},{e},{0.05 * t},-0.5,{int(t == 5)},0" for e in range(3) for t in range(6)]
)
TASK = {
    "name": "own-hopper",
    "suite": "gymnasium",
    "env_id": "Hopper-v5",
    "max_episode_steps": 50,
    "obs_keys": ["flat"],
    "env_kwargs": {"ctrl_cost_weight": 0.01},
    "dataset": "hopper.hdf5",
}
STAGE = {"name": "dpmd", "gamma": 0.98, "batch_size": 64, "rsm": {"kl_target": 0.5}, "critic": {"n_critics": 2}}
COMPARE = {
    "name": "damaged",
    "run_dir": "runs/damaged",
    "tasks": {"inverted_pendulum": {}, "hopper": {"settings": ["n_envs=2"], "methods": {"dpmd": ["seed=7"]}}},
    "methods": {"dpmd": ["stage=dpmd_scratch"], "sdac": ["stage=sdac_scratch", "stage.gamma=0.9"]},
    "settings": ["evaluation.episodes=5"],
    "seeds": [0, 1],
    "total_env_steps": 5000,
    "cell_memory_gb": 0.5,
}


class Reader(NamedTuple):
    """One door of Burnish that files or words come in by.

    Attributes:
        make: writes the good file or folder into a folder, and gives its path.
        damage: changes it (a copy), and says what it did.
        read: -> what was understood.

    The number of the variant, which both are given, chooses among several things and ways of reading; three at most.
    """

    make: Callable[[Path], Path]
    damage: Callable[[Path, random.Random, int], str]
    read: Callable[[Path, int], bytes]


# Demonstrations


def _episodes(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Observations (T + 1, 3), actions (T, 2), rewards (T,), terminals (T,) of episodes."""
    rng = np.random.default_rng(seed)
    found = []
    for length in (8, 5, 11):
        obs = rng.normal(size=(length + 1, 3)).astype(np.float32)
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        terminals = np.zeros(length, bool)
        terminals[-1] = length == 5
        found.append((obs, actions, rng.normal(size=length).astype(np.float32), terminals))
    return found


def make_robomimic(folder: Path) -> Path:
    import h5py

    path = folder / "demos.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, (obs, actions, rewards, terminals) in enumerate(_episodes()):
            demo = data.create_group(f"demo_{number}")
            for key, columns in {"object": slice(0, 1), "robot0_eef_pos": slice(1, 3)}.items():
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = obs[:-1, columns], obs[1:, columns]
            demo["actions"], demo["rewards"], demo["dones"] = actions, rewards, terminals.astype(np.int64)
            demo["states"] = np.zeros((len(actions), 4))
            demo.attrs["num_samples"], demo.attrs["model_file"] = len(actions), "<mujoco/>"
        data.attrs["total"], data.attrs["env_args"] = 24, json.dumps(ENV_ARGS)
        file["mask/train"] = np.array(["demo_0", "demo_2"], dtype="S")
    return path


def make_d4rl(folder: Path) -> Path:
    import h5py

    path, episodes = folder / "flat.hdf5", _episodes()
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([obs[:-1] for obs, *_ in episodes])
        file["next_observations"] = np.concatenate([obs[1:] for obs, *_ in episodes])
        for key, index in {"actions": 1, "rewards": 2, "terminals": 3}.items():
            file[key] = np.concatenate([episode[index] for episode in episodes])
        timeouts = [np.arange(len(actions)) == len(actions) - 1 for _, actions, *_ in episodes]
        file["timeouts"] = np.concatenate(timeouts) & ~file["terminals"][()]
    return path


def make_npz(folder: Path) -> Path:
    episodes = _episodes()
    arrays = {"states": np.concatenate([obs[:-1] for obs, *_ in episodes])}
    arrays |= {
        key: np.concatenate([e[i] for e in episodes]) for i, key in enumerate(("actions", "rewards", "terminals"), 1)
    }
    np.savez(folder / "train.npz", **arrays, traj_lengths=np.array([len(e[1]) for e in episodes]))
    bounds = {"obs_min": -np.ones(3), "obs_max": np.ones(3), "action_min": -np.ones(2), "action_max": np.ones(2)}
    np.savez(folder / "normalization.npz", **bounds)
    return folder / "train.npz"


def make_csv(folder: Path) -> Path:
    (folder / "table.csv").write_text(CSV + "\n")
    return folder / "table.csv"


def make_minari(folder: Path) -> Path:
    import minari
    from gymnasium import make
    from minari.data_collector import EpisodeBuffer

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=obs,
            actions=2 * actions[:, :1],
            rewards=list(rewards),
            terminations=[False] * len(rewards),
            truncations=[False] * (len(rewards) - 1) + [True],
        )
        for number, (obs, actions, rewards, _) in enumerate(_episodes())
    ]
    minari.create_dataset_from_buffers("pendulum/random-v0", buffers, env=make("Pendulum-v1"))
    return folder / "pendulum" / "random-v0"


def damage_hdf5(path: Path, rng: random.Random, number: int) -> str:
    if rng.random() < 0.4:
        return _damage_bytes(path, rng)
    return mutations.hdf5(path, rng)


def _damage_bytes(path: Path, rng: random.Random) -> str:
    data, what = mutations.bytes_of(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {what}"


def damage_minari(path: Path, rng: random.Random, number: int) -> str:
    metadata, data = path / "data" / "metadata.json", path / "data" / "main_data.hdf5"
    kind = rng.random()
    if kind < 0.4:
        text, what = mutations.json_text(metadata.read_text(), rng)
        metadata.write_text(text)
        return f"metadata.json: {what}"
    if kind < 0.5:
        return _damage_bytes(metadata, rng)
    if kind < 0.55:
        rng.choice([metadata, data]).unlink()
        return "a file is missing"
    return damage_hdf5(data, rng, number)


def damage_npz(path: Path, rng: random.Random, number: int) -> str:
    chosen = rng.choice([path, path, path, path.with_name("normalization.npz")])
    if rng.random() < 0.4:
        return _damage_bytes(chosen, rng)
    return f"{chosen.name}: {mutations.npz(chosen, rng)}"


def damage_csv(path: Path, rng: random.Random, number: int) -> str:
    if rng.random() < 0.4:
        return _damage_bytes(path, rng)
    text, what = mutations.csv(path.read_text(), rng)
    path.write_text(text)
    return what


def read_demos(path: Path, number: int) -> bytes:
    """As a training reads them; every third as `validate` does."""
    if number % 3 == 2:
        from burnish.datasets.checking.validate import validate

        result = validate(path, 0)
        return f"{[str(finding) for finding in result.findings]} {result.note}".encode()
    from burnish.datasets.checking.inspect import inspect
    from burnish.datasets.load import load

    demos = load(path)
    str(inspect(demos))
    return _digest_demos(demos)


def read_csv(path: Path, number: int) -> bytes:
    from burnish.datasets.collecting.convert import convert_csv

    demos = convert_csv(path, path.with_suffix(".hdf5"))
    return _digest_demos(demos)


def _digest_demos(demos: Any) -> bytes:
    found = hashlib.sha256()
    for episode in demos.episodes:
        arrays = {**episode.obs, "actions": episode.actions, "rewards": episode.rewards, "ends": episode.terminated}
        arrays |= {f"final {key}": values for key, values in (episode.final_obs or {}).items()}
        for key, values in sorted(arrays.items()):
            found.update(f"{episode.name} {key} {values.dtype} {values.shape}".encode() + values.tobytes())
    return found.digest() + repr(demos.env_args).encode()


# What Burnish writes itself


def make_policy(folder: Path) -> Path:
    import torch

    from burnish.networks import DenoiserConfig
    from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

    torch.manual_seed(0)
    denoiser = DenoiserConfig(hidden_dim=16, n_layers=1)
    policy = DiffusionPolicy(PolicyConfig(denoiser=denoiser, denoising_steps=5), 11, 3, ["flat"], "hopper")
    policy.save(folder / "policy")
    return folder / "policy"


def damage_policy(path: Path, rng: random.Random, number: int) -> str:
    """Of its files; half of the others' trees without the checksums, so that what reads them is reached."""
    chosen = rng.choice([*sorted(path.iterdir()), path / "policy.safetensors", path / "policy.json"])
    kind = rng.random()
    if kind < 0.5:
        return f"{_damage_bytes(chosen, rng)} {mutations.MUST_REFUSE}"
    if kind < 0.55:
        chosen.unlink()
        return f"{chosen.name} is missing"
    checksums = path / "SHA256SUMS"
    checksums.unlink(missing_ok=True)
    if chosen.suffix == ".safetensors":
        return f"without checksums: {_damage_tensors(chosen, rng)}"
    chosen = chosen if chosen.suffix == ".json" else path / "policy.json"
    text, what = mutations.json_text(chosen.read_text(), rng)
    chosen.write_text(text)
    return f"without checksums: {chosen.name}: {what}"


def _damage_tensors(path: Path, rng: random.Random) -> str:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    kind = rng.choice(["delete", "add", "shape", "dtype", "integers", "nan", "huge", "empty"])
    if kind == "delete":
        del tensors[name]
    elif kind == "add":
        tensors["added.weight"] = torch.zeros(3)
    elif kind == "shape":
        tensors[name] = torch.zeros(tuple(size + 1 for size in tensors[name].shape))
    elif kind == "dtype":
        tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.float16, torch.bfloat16]))
    elif kind == "integers":
        tensors[name] = tensors[name].to(torch.int32)
    elif kind == "nan":
        tensors[name] = tensors[name] * math.nan
    elif kind == "huge":
        tensors[name] = tensors[name] * 1e30
    else:
        tensors = {}
    save_file(tensors, path)
    return f"{path.name}: {kind}, {name}"


def read_policy(path: Path, number: int) -> bytes:
    import torch

    from burnish.policies.load import load_policy

    policy = load_policy(path)
    observed = np.linspace(-1, 1, 11, dtype=np.float32)[None, None]
    actions = policy.act(observed, generator=torch.Generator().manual_seed(0))
    return np.asarray(actions).tobytes() + json.dumps(policy.description(), sort_keys=True).encode()


def make_runs(folder: Path) -> Path:
    """A pretraining and a fine-tuning that were stopped, each with one checkpoint."""
    base = folder.parent / "checkpoint-base"
    base.mkdir(exist_ok=True)
    for name, words in MADE_FIRST.items():
        _run(base, name, words)
    for kind in ("bc", "dppo", "dpmd"):
        at = folder / "runs" / kind
        at.mkdir(parents=True)
        words = [word.format(base=base) for word in KINDS[kind].words]
        _run(at, kind, words)
        run = at / "run"
        steps = sorted((run / "checkpoints").glob("step_*"))
        for step in steps[:-1]:
            shutil.rmtree(step)
        for name in ("latest", "best"):
            (run / "checkpoints" / name).unlink()
            (run / "checkpoints" / name).symlink_to(steps[-1].name)
    return folder / "runs"


def _run(at: Path, name: str, words: Any) -> None:
    if not (at / name).exists():
        pid = start_burnish(words, at, at / f"{name}.log", "damage")
        if status := wait(pid, 300):
            raise SystemExit(f"chaos: burnish {words[0]} ended with status {status}: see {at / name}.log")


def _of_runs(path: Path, number: int) -> Path:
    return path / ("bc", "dppo", "dpmd")[number % 3] / "run"


def damage_checkpoint(path: Path, rng: random.Random, number: int) -> str:
    run = _of_runs(path, number)
    checkpoint = next((run / "checkpoints").glob("step_*"))
    kind = rng.random()
    if kind < 0.45:
        chosen = rng.choice([checkpoint / "trainer.pt", *sorted(checkpoint.iterdir())])
        return f"{run.parent.name}: {_damage_bytes(chosen, rng)} {mutations.MUST_REFUSE}"
    if kind < 0.75:
        return f"{run.parent.name}: {_damage_trainer(checkpoint / 'trainer.pt', rng)}"
    if kind < 0.85:
        text, what = mutations.yaml_text((run / "config.yaml").read_text(), rng)
        (run / "config.yaml").write_text(text)
        return f"{run.parent.name}: config.yaml: {what}"
    if kind < 0.9:
        return f"{run.parent.name}: {_damage_bytes(run / 'metrics.jsonl', rng)}"
    return f"{run.parent.name}: {damage_policy(checkpoint, rng, number)}"


def _damage_trainer(path: Path, rng: random.Random) -> str:
    import torch

    content = torch.load(path, weights_only=True)
    what = mutations.tree(content, rng, _strange_tensor)
    torch.save(content, path)
    return f"trainer.pt: {what}"


def _strange_tensor(rng: random.Random) -> Any:
    import torch

    if rng.random() < 0.5:
        return mutations.strange(rng)
    return rng.choice(
        [
            torch.zeros(3),
            torch.zeros(0),
            torch.tensor(math.nan),
            torch.zeros(2, 3, dtype=torch.int64),
            torch.zeros(1, 1, 1),
        ]
    )


class _Loaded(BaseException):
    """Ends a resumed run once it has its state."""


def read_checkpoint(path: Path, number: int) -> bytes:
    """Resume the run, with more to do than it had, up to what it would do next -> its state, written again."""
    from burnish.commands.configure import configure
    from burnish.commands.table import COMMANDS
    from burnish.finetune.stage import stage_class
    from burnish.pretrain.behaviour_cloning import BehaviourCloning

    run = _of_runs(path, number)
    found: list[bytes] = []

    def told(learner: Any, *given: Any) -> Any:
        found.append(digest(learner.state_dict()) + digest(given))
        raise _Loaded

    BehaviourCloning.update = told  # type: ignore[method-assign]
    for name in ("dppo", "dpmd"):
        stage: Any = stage_class(name)
        stage.act = stage.update = told
    name, more = ("pretrain", "train.updates=100") if number % 3 == 0 else ("finetune", "total_env_steps=100000")
    command = next(command for command in COMMANDS if command.name == name)
    try:
        command.run(command.parse(configure(command, [f"resume={run}", more])))
    except _Loaded:
        return found[0]
    return b"ended"


def digest(value: Any) -> bytes:
    """Of nested tensors, arrays and plain values."""
    import torch

    found = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu().numpy() if item.dtype != torch.bfloat16 else item.float().numpy()
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                found.update(str(key).encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            found.update(f"{len(item)}".encode())
            for each in item:
                add(each)
        elif isinstance(item, np.ndarray):
            found.update(f"{item.dtype} {item.shape}".encode() + item.tobytes())
        else:
            found.update(repr(item).encode())

    add(value)
    return found.digest()


# Words and settings


YAML_FILES = ("task", "stage", "compare")


def make_yaml(folder: Path) -> Path:
    import yaml

    at = folder / "yaml"
    at.mkdir()
    for name, content in {"task": TASK, "stage": STAGE, "compare": COMPARE}.items():
        (at / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return at


def damage_yaml(path: Path, rng: random.Random, number: int) -> str:
    os.environ["CHAOS_SECRET"] = "SECRET-OF-THE-ENVIRONMENT"
    name = YAML_FILES[number % 3]
    file = path / f"{name}.yaml"
    if rng.random() < 0.3:
        return _damage_bytes(file, rng)
    text, what = mutations.yaml_text(file.read_text(), rng)
    file.write_text(text)
    return f"{name}: {what}"


def read_yaml(path: Path, number: int) -> bytes:
    """A task and a stage as a training does, a comparison as its --plan."""
    from burnish.compare.config import read_config
    from burnish.compare.plan import plan

    name = YAML_FILES[number % 3]
    if name == "task":
        return _configured("pretrain", [f"task={path}/task.yaml"])
    if name == "stage":
        return _configured("finetune", [*HOPPER, f"stage={path}/stage.yaml", "policy=x"])
    return repr([(cell.command, cell.words) for cell in plan(read_config(path / "compare.yaml"))]).encode()


def _configured(name: str, words: list[str]) -> bytes:
    from burnish.commands.configure import configure
    from burnish.commands.table import COMMANDS
    from burnish.config import to_dict

    command = next(command for command in COMMANDS if command.name == name)
    plain = to_dict(command.parse(configure(command, words)))
    if bad := _not_finite(plain):
        raise ReadWrong(f"taken: {bad}")
    return json.dumps(plain, sort_keys=True, default=str).encode()


class ReadWrong(Exception):
    """Something was taken that nobody can mean."""


def _not_finite(value: Any, key: str = "") -> str | None:
    if isinstance(value, dict):
        return next((bad for name, item in value.items() if (bad := _not_finite(item, f"{key}.{name}"))), None)
    if isinstance(value, (list, tuple)):
        return next((bad for item in value if (bad := _not_finite(item, key))), None)
    return f"{key[1:]}={value}" if isinstance(value, float) and not math.isfinite(value) else None


COMMAND_LINES = {
    "pretrain": ["task=hopper", "dataset=x.hdf5", "policy=mlp", "seed=3", "train.updates=100"],
    "finetune": ["task=hopper", "stage=dpmd_gym", "policy=x", "n_envs=4", "total_env_steps=1000"],
    "scratch": ["task=hopper", "stage=sdac_scratch", "seed=1"],
    "evaluate": ["task=hopper", "policy=x", "episodes=10"],
    "data collect": ["task=hopper", "behaviour=sac", "episodes=2", "out=x.hdf5"],
}


def make_overrides(folder: Path) -> Path:
    path = folder / "words.json"
    path.write_text(json.dumps(["pretrain", *COMMAND_LINES["pretrain"]]))
    return path


def damage_overrides(path: Path, rng: random.Random, number: int) -> str:
    from burnish.commands.table import COMMANDS
    from burnish.compose import _dotted_keys, compose

    name = rng.choice(sorted(COMMAND_LINES))
    command = next(command for command in COMMANDS if command.name == name)
    keys = sorted(_dotted_keys(compose(command.config, COMMAND_LINES[name])))
    words, what = mutations.overrides(COMMAND_LINES[name], rng, keys)
    path.write_text(json.dumps([name, *words]))
    return f"{name}: {what}"


def read_overrides(path: Path, number: int) -> bytes:
    name, *words = json.loads(path.read_text())
    return _configured(name, words)


READERS = {
    "robomimic": Reader(make_robomimic, damage_hdf5, read_demos),
    "d4rl": Reader(make_d4rl, damage_hdf5, read_demos),
    "minari": Reader(make_minari, damage_minari, read_demos),
    "npz": Reader(make_npz, damage_npz, read_demos),
    "csv": Reader(make_csv, damage_csv, read_csv),
    "policy": Reader(make_policy, damage_policy, read_policy),
    "checkpoint": Reader(make_runs, damage_checkpoint, read_checkpoint),
    "yaml": Reader(make_yaml, damage_yaml, read_yaml),
    "overrides": Reader(make_overrides, damage_overrides, read_overrides),
}
