"""Where others' code and files begin: one line with the cause, bounds before memory is taken, no other files."""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from burnish import foreign
from burnish.commands.cli import main
from burnish.compare.config import read_config
from burnish.compose import compose
from burnish.config import load_yaml
from burnish.datasets.formats import d4rl, dppo_npz, hdf5, minari_local
from burnish.datasets.formats.robosuite_states import _parse, _place_fixed_bodies
from burnish.datasets.load import load
from burnish.envs.gymnasium.simulator import make_gymnasium
from burnish.envs.robosuite.env import complete_env_kwargs, task_from_env_args
from burnish.envs.task import TaskConfig, load_task
from burnish.errors import BurnishError, Stopped
from burnish.machine import memory
from burnish.machine.allocation import AtMost
from burnish.machine.device import DeviceConfig, resolve_device
from burnish.networks.optimise import load_optimizer
from burnish.policies.load import load_policy
from burnish.registry import import_named
from burnish.runs.state import load_state, require_alike, save_state

FILES = Path(__file__).resolve().parent / "data" / "format1"
POLICY = next((FILES / "comparison" / "inverted_double_pendulum" / "dpmd" / "seed3").rglob("step_*/policy.json")).parent
GAUSSIAN = next((FILES / "runs" / "gaussian").rglob("step_*/policy.json")).parent
N = 12


def said(act: Callable[[], Any]) -> str:
    """What the BurnishError says that `act` ends in: one line, not too long."""
    with pytest.raises(BurnishError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


# what code of others raises


@pytest.mark.parametrize(
    "error", [AttributeError("no setter"), RuntimeError("a\nb"), KeyError("x"), ZeroDivisionError(), MemoryError()]
)
def test_whatever_others_raise_is_one_line_with_its_cause(error: Exception) -> None:
    def act() -> None:
        with foreign.told_as("robosuite cannot be made", "; do this", place=True):
            raise error

    text = said(act)
    assert text.startswith(f"robosuite cannot be made ({type(error).__name__}") and text.endswith("; do this")
    assert "test_edges.py:" in text


@pytest.mark.parametrize("error", [BurnishError("ours"), Stopped("asked to"), NotImplementedError("cannot be saved")])
def test_what_is_ours_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, foreign.told_as("robosuite"):
        raise error
    assert caught.value is error


def test_long_messages_keep_their_beginning_and_end() -> None:
    text = foreign.one_line("begin" + "x" * 10_000 + "end", 300)
    assert text.startswith("begin") and text.endswith("end") and 290 < len(text) < 310
    assert foreign.one_line("a\nb\r\n c") == "a b c"
    assert foreign.one_line("two  blanks") == "two  blanks"  # of a path


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/x"), "run/x: No space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "run/x"), "run/x: Permission denied"),
        (MemoryError("Unable to allocate 8 EiB"), "out of memory (MemoryError: Unable to allocate 8 EiB)"),
        (torch.cuda.OutOfMemoryError("CUDA"), "out of memory (OutOfMemoryError: CUDA)"),
        (type("FatalError", (Exception,), {"__module__": "mujoco"})("stack"), "MuJoCo ends: FatalError: stack"),
    ],
)
def test_what_the_machine_refuses_is_one_line_wherever_it_does(monkeypatch, capsys, error, words: str) -> None:
    monkeypatch.setattr("burnish.commands.cli._dispatch", lambda arguments: (_ for _ in ()).throw(error))
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"burnish: error: {words}")


@pytest.mark.parametrize("error", [KeyError("x"), OSError("no number"), RuntimeError(), ConnectionResetError(104, "x")])
def test_a_defect_of_ours_keeps_its_traceback_and_asks_for_a_report(monkeypatch, capsys, error) -> None:
    monkeypatch.setattr("burnish.commands.cli._dispatch", lambda arguments: (_ for _ in ()).throw(error))
    assert main([]) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text and text.splitlines()[-1].startswith("burnish: this is a defect")


@pytest.mark.parametrize(
    ("text", "encoding", "written"),
    [
        ("┏━┃│─", "latin-1", "+-||-"),
        ("±1 – 2…", "ascii", "+-1 - 2..."),
        ("Zürich", "ascii", "Zurich"),
        ("\ud800é", "utf-8", "?é"),
        ("✓", "cp1252", "?"),
    ],
)
def test_terminals_get_the_characters_that_they_have(monkeypatch, text: str, encoding: str, written: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    foreign.write_plainly()
    print(text, end="", flush=True)
    assert raw.getvalue().decode(encoding) == written


@pytest.mark.parametrize(
    "source", ["raise SystemExit(3)", "1 / 0", "raise BaseExceptionGroup('a', [])", "import nothing_x"]
)
def test_plugins_that_cannot_be_imported(tmp_path, monkeypatch, source: str) -> None:
    (tmp_path / "plugin_x.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_x", raising=False)
    assert said(lambda: import_named("plugin_x", "plugins=[plugin_x]")).startswith("plugins=[plugin_x]: ")


class Broken:
    """A Gymnasium environment whose calls fail."""

    def __init__(self, where: str):
        from gymnasium.spaces import Box

        self.where, self.render_mode = where, "rgb_array"
        self.observation_space = self.action_space = Box(-1, 1, (2,))

    def _call(self, name: str, answer: Any) -> Any:
        if self.where == name:
            raise ZeroDivisionError("division by zero")
        return answer

    def reset(self, seed: int | None = None) -> Any:
        return self._call("reset", (np.zeros(2), {}))

    def step(self, action: Any) -> Any:
        return self._call("step", (np.zeros(2), 0.0, False, False, {}))

    def render(self) -> Any:
        return self._call("render", np.zeros((2, 2, 3)))


@pytest.mark.parametrize("where", ["reset", "step", "render"])
def test_an_environment_that_fails_is_told_with_its_line(where: str) -> None:
    from burnish.envs.gymnasium.simulator import GymnasiumSimulator

    simulator = GymnasiumSimulator(Broken(where), TaskConfig("x", "gymnasium", "Mine-v0", 10))
    simulator.reset(0) if where != "reset" else None
    calls = {"reset": lambda: simulator.reset(0), "step": lambda: simulator.step(np.zeros(2, np.float32))}
    text = said(calls.get(where, lambda: simulator.render(2, 2)))
    assert "Mine-v0" in text and "ZeroDivisionError: division by zero" in text and "test_edges.py:" in text


@pytest.mark.parametrize(
    "error", [Exception("The current node timed out"), OSError("x"), TypeError("y"), SystemError()]
)
def test_ray_that_does_not_start(monkeypatch, error: Exception) -> None:
    from burnish.compare.ray_runner import RayRunner

    def init(**_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    config: Any = SimpleNamespace(cores=1, memory_gb=None, cell_cores=1, cell_memory_gb=1.0)
    assert said(lambda: RayRunner(config)).startswith("runner=ray: no cluster at RAY_ADDRESS=")


# YAML


def laughs(kind: str) -> str:
    """A few lines that stand for 10^12 values."""
    row, of = ("[{}]", "*a{}") if kind == "list" else ("{{<<: [{}]}}", "*a{}")
    first = "a0: &a0 [x]" if kind == "list" else "a0: &a0 {x: 1}"
    return "\n".join([first, *(f"a{i}: &a{i} {row.format(', '.join([of.format(i - 1)] * 10))}" for i in range(1, 13))])


@pytest.mark.parametrize(
    "text", [laughs("list"), laughs("map"), "a: &a [*a]", "a: &a {b: *a}", "[" * 3000, "a: 2024-13-45", "9" * 5000]
)
def test_yaml_that_takes_the_machine_or_is_none(tmp_path, text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    (tmp_path / "x.yaml").write_text(text)
    assert "cannot be read" in said(lambda: load_task(str(tmp_path / "x.yaml")))
    assert "cannot be read" in said(lambda: read_config(tmp_path / "x.yaml"))


def test_ordinary_aliases_are_read() -> None:
    text = "a: &a {x: 1e3}\nb: {<<: *a, y: [*a, *a]}"
    assert load_yaml(text) == {"a": {"x": 1e3}, "b": {"x": 1e3, "y": [{"x": 1e3}] * 2}}
    assert load_yaml("x: 1e3", as_written=True) == {"x": "1e3"}  # YAML 1.1's own reading


TASK = {"name": "hopper", "suite": "gymnasium", "env_id": "Hopper-v5", "max_episode_steps": 1000}


@pytest.mark.parametrize(
    "change",
    [{"env_id": "${oc.env:SECRET}"}, {"env_kwargs": {"a": ["${oc.env:SECRET}"]}}, {"obs_keys": ["${seed}"]}],
)
def test_what_a_file_says_is_not_resolved(tmp_path, monkeypatch, change: dict[str, Any]) -> None:
    monkeypatch.setenv("SECRET", "do not tell")
    task = {**TASK, **change}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(task))
    words = ["stage=dppo", "policy=x"]
    from_file = said(lambda: compose("finetune", [f"task={tmp_path / 'x.yaml'}", *words]))
    from_policy = said(lambda: compose("finetune", words, {"task": task}))
    for text in (from_file, from_policy):
        assert "expected no ${...}" in text and "do not tell" not in text


@pytest.mark.parametrize("word", ["run_dir=${oc.env:SECRET}", "task.env_kwargs={a: [{b: '${oc.env:SECRET}'}]}"])
def test_words_call_no_function(monkeypatch, word: str) -> None:
    """They may be a comparison's."""
    monkeypatch.setenv("SECRET", "do not tell")
    text = said(lambda: compose("finetune", ["task=hopper", "stage=dppo", "policy=x", word]))
    assert "without a colon" in text and "do not tell" not in text


def test_words_may_name_other_keys() -> None:
    assert compose("finetune", ["task=hopper", "stage=dppo", "seed=7", "run_dir=a/${seed}"])["run_dir"] == "a/7"


@pytest.mark.parametrize(
    "word", ["seed=" + "9" * 5000, "seed=" + "9" * 30, "stage.gamma=1" + "0" * 400, "task.env_kwargs.a=" + "[" * 3000]
)
def test_numbers_and_brackets_beyond_all_limits(capsys, word: str) -> None:
    assert main(["finetune", "task=hopper", "stage=dppo", "policy=x", word]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and len(error) < 700


# a policy's files


def changed_policy(tmp_path: Path, change: Callable[[dict[str, Any]], Any], source: Path = POLICY) -> Path:
    folder = tmp_path / "policy"
    shutil.copytree(source, folder)
    content = json.loads((folder / "policy.json").read_text())
    content = change(content) or content
    (folder / "policy.json").write_text(json.dumps(content))
    return folder


KEPT = ["denoising_steps", "horizon", "n_obs_steps", "schedule", "clip_sample", "sampler", "eta", "denoiser"]
INSIDE = ["hidden_dim", "n_layers", "residual", "activation", "time_dim", "channels"]


@pytest.mark.parametrize(("section", "key"), [("", key) for key in KEPT] + [("denoiser", key) for key in INSIDE])
def test_a_policy_that_lacks_a_key_is_not_given_a_default(tmp_path, section: str, key: str) -> None:
    def change(content: dict[str, Any]) -> None:
        config = content["config"]
        del (config[section] if section else config)[key]

    where = f"config.{section}.{key}" if section else f"config.{key}"
    assert f"policy.json: {where} is missing" in said(lambda: load_policy(changed_policy(tmp_path, change)))


@pytest.mark.parametrize("key", ["hidden_sizes", "activation", "squash", "log_std_init"])
def test_nor_is_a_gaussian_one(tmp_path, key: str) -> None:
    folder = changed_policy(tmp_path, lambda content: content["config"].pop(key) and None, GAUSSIAN)
    assert f"config.{key} is missing" in said(lambda: load_policy(folder))


def test_nor_is_a_critic(tmp_path) -> None:
    folder = changed_policy(tmp_path, lambda content: content["critic"].pop("layer_norm") and None)
    assert "critic.layer_norm is missing" in said(lambda: load_policy(folder))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "denoiser", "n_layers"), 10**9),
        (("config", "denoiser", "hidden_dim"), 2**16),
        (("config", "denoiser", "time_dim"), 10**9),
        (("config", "denoising_steps"), 10**9),
        (("config", "horizon"), 10**9),
        (("critic", "n_critics"), 10**9),
        (("obs_dim",), 10**9),
        (("action_dim",), 10**9),
        (("action_dim",), 10**30),
    ],
)
def test_a_policy_larger_than_its_weights_takes_no_memory(tmp_path, keys: tuple[str, ...], value: int) -> None:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    before = memory.peak_memory_mib()
    assert "policy.json" in said(lambda: load_policy(changed_policy(tmp_path, change)))
    assert memory.peak_memory_mib() < before + 300


@pytest.mark.parametrize(
    "change",
    [
        {"obs_keys": "flat"}, {"obs_keys": [1]}, {"kind": 5}, {"critic": 5}, {"critic": {"kind": []}}, {"task": None},
        {"trained_in": [1]}, {"plugins": "x"}, {"config": []}, {"sensors": {"a": 5}}, {"sensors": {"a": {"shape": 5}}},
        {"obs_dim": "4"}, {"obs_dim": -1}, {"action_dim": 1.5}, {"ft_denoising_steps": True},
        {"ft_denoising_steps": None}, {"format": None}, {"format": [1]},
    ],
)  # fmt: skip
def test_a_policy_of_other_kinds(tmp_path, change: dict[str, Any]) -> None:
    assert "policy.json" in said(lambda: load_policy(changed_policy(tmp_path, lambda content: {**content, **change})))


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "5", "null", "{", '"format"', "{}"])
def test_policy_json_of_something_else(tmp_path, content: str) -> None:
    folder = changed_policy(tmp_path, lambda content: None)
    (folder / "policy.json").write_text(content)
    assert "policy.json is damaged" in said(lambda: load_policy(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.to(torch.int32), "is int32"),
        (lambda weight: weight.view(torch.int32), "is int32"),  # the same bits
        (lambda weight: weight.double(), "is float64"),
        (lambda weight: weight.half(), "is float16"),
        (lambda weight: weight.T.contiguous(), "expected float32"),
        (lambda weight: weight[:1].clone(), "expected float32"),
        (lambda weight: weight.flatten(), "expected float32"),
    ],
)
def test_each_weight_has_the_type_and_shape_that_is_expected(tmp_path, change: Any, words: str) -> None:
    folder = changed_policy(tmp_path, lambda content: None)
    weights = load_file(folder / "policy.safetensors")
    name = "denoiser.from_action.weight"
    save_file({**weights, name: change(weights[name])}, folder / "policy.safetensors")
    text = said(lambda: load_policy(folder))
    assert f"policy.safetensors does not fit policy.json beside it: {name}" in text and words in text


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(1000, 1000), lambda: torch.zeros(size=(1000, 1000)), lambda: torch.randn([10**6])]
)
def test_networks_take_no_more_than_they_may(make: Callable[[], Any]) -> None:
    with AtMost(5_000_000, "x"):
        make()
    assert said(lambda: _within(3_999_999, make)) == "x: its networks need more than 3,999,999 bytes"


def _within(n_bytes: int, make: Callable[[], Any]) -> None:
    with AtMost(n_bytes, "x"):
        make()


# a checkpoint


@pytest.mark.parametrize(
    ("found", "example", "words"),
    [
        ({"a": {"b": "x"}}, {"a": {"b": 1}}, "s.a.b is str, expected int"),
        ({"a": True}, {"a": 1}, "s.a is bool, expected int"),
        ([1, 2, "x"], [0], "s[2] is str, expected int"),
        (torch.zeros(3), torch.zeros(3, 1), "expected Tensor of torch.float32, (..., 1)"),
        (torch.zeros(3).double(), torch.zeros(3), "is Tensor of torch.float64"),
        (np.zeros((3, 2)), np.zeros((5, 3)), "is ndarray of float64, (..., 2)"),
        (None, torch.zeros(3), "is NoneType"),
        ({"param_groups": [{"amsgrad": 1}]}, {"param_groups": [{"amsgrad": False}]}, "s.param_groups"),
        ({"param_groups": [{"amsgrad": True}]}, {"param_groups": [{"amsgrad": False}]}, "amsgrad is True"),
        ({"param_groups": [{"betas": (0.9, np.nan)}]}, {"param_groups": [{"betas": (0.9, 0.9)}]}, "betas"),
    ],
)
def test_a_state_of_other_kinds(found: Any, example: Any, words: str) -> None:
    text = said(lambda: require_alike(found, example, "s"))
    assert text.startswith("s") and words in text


def test_a_state_of_other_values_is_taken() -> None:
    found = {"a": [1, 2, 3], "b": torch.zeros(9, 2), "c": "x", "d": 1, "new": 1, "e": {"f": None}}
    example = {"a": [], "b": torch.zeros(0, 2), "c": None, "d": 1.5, "old": 1, "e": {}}
    require_alike(found, example, "s")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exp_avg", torch.zeros(2)),
        ("exp_avg", torch.zeros(3, 2)),
        ("exp_avg", []),
        ("step", torch.zeros(2)),
    ],
)
def test_averages_of_an_optimizer_have_the_shape_of_what_they_are_of(name: str, value: Any) -> None:
    layer = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    load_optimizer(optimizer, state)
    state["state"][0][name] = value
    assert f"an optimizer's {name} is" in said(lambda: load_optimizer(optimizer, state))


def change_stage(state: Any) -> Any:
    state["state"]["stage"]["gradient_steps"] = "x"
    return state


def change_statistics(state: Any) -> Any:
    state["state"]["statistics"] = {"returns": 5}
    return state


@pytest.mark.parametrize(
    "change",
    [
        lambda state: 5,
        lambda state: [state],
        lambda state: torch.zeros(3),
        lambda state: {},
        change_stage,
        change_statistics,
        lambda state: state | {"n_metric_lines": -1},
        lambda state: state | {"state": {}},
        lambda state: state | {"random": {}},
        lambda state: state | {"state": state["state"] | {"best": "x"}},
        lambda state: state | {"state": state["state"] | {"obs": 5}},
    ],
)
def test_trainer_pt_of_other_contents(tmp_path, monkeypatch, capsys, change: Callable[[Any], Any]) -> None:
    import gzip

    shutil.copytree(FILES, tmp_path / "files", symlinks=True)
    monkeypatch.chdir(tmp_path / "files")
    run = Path("comparison/inverted_double_pendulum/dpmd/seed3")
    packed = next(run.rglob("step_*/trainer.pt.gz"))
    trainer = packed.with_suffix("")
    trainer.write_bytes(gzip.decompress(packed.read_bytes()))
    torch.save(change(torch.load(trainer, weights_only=True)), trainer)
    before = (run / "metrics.jsonl").read_text()
    assert main(["finetune", f"resume={run}", "total_env_steps=96"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "trainer.pt" in lines[0], lines
    assert (run / "metrics.jsonl").read_text() == before


# files of demonstrations


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N, 4))
    return {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (N, 2)),
        "rewards": np.ones(N),
        "terminals": np.zeros(N, bool),
        "timeouts": np.arange(N) % 6 == 5,
    }


def write_d4rl(path: Path, **changed: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in {**arrays(), **changed}.items():
            file[key] = values
    return path


def test_the_files_that_are_spoiled_here_are_good(tmp_path) -> None:
    assert [len(episode) for episode in load(write_d4rl(tmp_path / "a.hdf5")).episodes] == [6, 6]
    assert [len(episode) for episode in load(write_npz(tmp_path / "a.npz")).episodes] == [6, 6]


@pytest.mark.parametrize("key", ["terminals", "timeouts"])
@pytest.mark.parametrize("values", [np.full(N, 2), np.full(N, np.nan), np.full(N, -1.0), np.full(N, 0.5)])
def test_flags_of_d4rl_are_flags(tmp_path, key: str, values: np.ndarray) -> None:
    text = said(lambda: load(write_d4rl(tmp_path / "a.hdf5", **{key: values})))
    assert f"{key} is {values[0]} at step 0: expected 0 or 1" in text


@pytest.mark.parametrize("numbers", [2**31, 2**40, 2**62])
def test_an_array_that_is_declared_and_not_there(tmp_path, numbers: int) -> None:
    path = write_d4rl(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (numbers,), "f8", chunks=(1024,))
    assert "rewards declares" in said(lambda: load(path))


def test_many_links_to_one_array_count_each_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LEAST_UNPACKED", 5_000_000)
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(30):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.zeros((100, 2))
        file["x"] = np.zeros((100, 1))
        large = file.create_dataset("large", (100, 10_000), "f8", chunks=(100, 1000), compression="gzip")
        for demo in file["data"].values():
            demo["obs/x"] = large
    assert "in all, in a file of" in said(lambda: load(path))


def test_the_last_row_unpacks_its_chunk(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LEAST_UNPACKED", 1_000_000)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("x", (10**6, 1), "f8", chunks=(10**6, 1), compression="gzip")
        file.create_dataset("y", (10**6, 1), "f8", chunks=(1000, 1), compression="gzip")
    with hdf5.reading(tmp_path / "a.hdf5") as file:
        assert hdf5.last_row(hdf5.array(file["y"], "y"), "y") == 0
        assert "x declares 8,000,000 bytes" in said(lambda: hdf5.last_row(hdf5.array(file["x"], "x"), "x"))


def test_more_than_the_machine_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100)
    assert "but this machine has 100 free" in said(lambda: load(write_d4rl(tmp_path / "a.hdf5")))


def test_free_memory_knows_the_limit_of_the_process(monkeypatch) -> None:
    import psutil

    free = memory.free_memory()
    assert 0 < free <= psutil.virtual_memory().total
    limit = psutil.Process().memory_info().vms + 10**7
    monkeypatch.setattr("resource.getrlimit", lambda what: (limit, limit))
    assert 0 <= memory.free_memory() <= 2 * 10**7


def external(folder: Path) -> Path:
    """Numbers in a file of another kind."""
    secret = folder / "secret"
    secret.write_bytes(b"secret!!" * N)
    path = write_d4rl(folder / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (N,), "f8", external=[(str(secret), 0, 8 * N)])
    return path


def linked(folder: Path, elsewhere: Path, name: str = "") -> Path:
    other = write_d4rl(elsewhere / "other.hdf5")
    path = write_d4rl(folder / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink(name or str(other), "rewards")
    return path


def virtual(folder: Path, elsewhere: Path) -> Path:
    other = write_d4rl(elsewhere / "other.hdf5")
    path = write_d4rl(folder / "a.hdf5")
    layout = h5py.VirtualLayout((N,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "rewards", shape=(N,))
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_virtual_dataset("rewards", layout)
    return path


def test_numbers_in_a_file_of_another_kind_are_refused(tmp_path) -> None:
    path = external(tmp_path)
    assert "rewards has its numbers in another file" in said(lambda: load(path))
    beside = tmp_path / "b.hdf5"  # nor through a virtual dataset, or a link to a file beside
    layout = h5py.VirtualLayout((N,), "f8")
    layout[:] = h5py.VirtualSource("a.hdf5", "rewards", shape=(N,))
    with h5py.File(write_d4rl(beside), "a") as file:
        del file["rewards"]
        file.create_virtual_dataset("rewards", layout)
    assert "expected an array with its numbers" in said(lambda: load(beside))
    with h5py.File(beside, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("a.hdf5", "rewards")
    assert "rewards has its numbers in another file" in said(lambda: load(beside))


@pytest.mark.parametrize("make", [linked, virtual])
def test_parts_of_hdf5_are_beside_the_file(tmp_path, make: Callable[[Path, Path], Path]) -> None:
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    assert "beside" in said(lambda: load(make(folder, elsewhere)))
    below = folder / "parts"
    below.mkdir()
    assert len(load(make(folder, below)).episodes) == 2


@pytest.mark.parametrize("name", ["../elsewhere/other.hdf5", "parts/../../elsewhere/other.hdf5", "here.hdf5"])
def test_links_that_lead_out(tmp_path, monkeypatch, name: str) -> None:
    """The last: a file of the working folder, where HDF5 looks as well."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir(), (folder / "parts").mkdir()
    monkeypatch.chdir(elsewhere)
    write_d4rl(elsewhere / "here.hdf5")
    assert "is a link into" in said(lambda: load(linked(folder, elsewhere, name)))


def test_links_of_the_files_that_are_linked_to(tmp_path) -> None:
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    linked(folder, elsewhere).rename(folder / "b.hdf5")
    path = write_d4rl(folder / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("b.hdf5", "rewards")
    assert "b.hdf5: rewards is a link into" in said(lambda: load(path))


def write_npz(path: Path, **changed: Any) -> Path:
    whole = arrays()
    named = {"states": whole["observations"], "actions": whole["actions"], "traj_lengths": np.array([6, 6])}
    np.savez(path, **{**named, "rewards": whole["rewards"], "terminals": whole["terminals"], **changed})
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("rewards", np.array(["a"] * N), "rewards is <U1"),
        ("rewards", np.ones((N, 2)), "rewards has the shape (12, 2)"),
        ("rewards", np.array(1.0), "rewards is float64 of the shape ()"),
        ("terminals", np.full(N, np.nan), "terminals is nan at step 0"),
        ("terminals", np.full(N, 3), "terminals is 3 at step 0"),
        ("terminals", np.zeros(N, "c8"), "terminals is complex64"),
        ("traj_lengths", np.array([18, -6]), "traj_lengths has -6"),
        ("traj_lengths", np.array([5.5, 6.5]), "traj_lengths has 5.5"),
        ("traj_lengths", np.array([np.nan, 12]), "traj_lengths has nan"),
        ("traj_lengths", np.array(["6", "6"]), "traj_lengths is <U1"),
        ("traj_lengths", np.array([2**62, 6]), "traj_lengths has 4611686018427387904"),
        ("traj_lengths", np.zeros(0), "traj_lengths has nothing"),
    ],
)
def test_npz_of_other_kinds_and_shapes(tmp_path, key: str, values: np.ndarray, words: str) -> None:
    assert words in said(lambda: load(write_npz(tmp_path / "a.npz", **{key: values})))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("values", [np.array(["a"] * 4), np.zeros(4, "c8"), np.zeros(3)])
def test_bounds_beside_an_npz(tmp_path, values: np.ndarray) -> None:
    bounds = {"obs_min": np.zeros(4), "obs_max": np.ones(4), "action_min": np.zeros(2), "action_max": np.ones(2)}
    np.savez(tmp_path / "normalization.npz", **{**bounds, "obs_max": values})
    assert "normalization.npz: obs_max: expected" in said(lambda: load(write_npz(tmp_path / "a.npz")))


def npz_with(path: Path, header_shape: tuple[int, ...], data: bytes) -> Path:
    write_npz(path)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": header_shape})
    parts = {info: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).namelist()}
    parts["rewards.npy"] = content.getvalue() + data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return path


@pytest.mark.parametrize(("field", "value"), [(6, 109), (10, 77)])  # version that is needed, kind of compression
def test_npz_of_a_zip_that_is_not_known(tmp_path, field: int, value: int) -> None:
    path = tmp_path / "a.npz"
    write_npz(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + field] = value  # in the list of the members
    path.write_bytes(content)
    assert "damaged, or not an npz file" in said(lambda: load(path))


@pytest.mark.parametrize("shape", [(2**40,), (2**62,), (13,)])
def test_npz_that_declares_more_than_it_has(tmp_path, shape: tuple[int, ...]) -> None:
    assert "rewards declares" in said(lambda: load(npz_with(tmp_path / "a.npz", shape, bytes(8 * N))))


def test_npz_that_unpacks_to_much_more(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LEAST_UNPACKED", 2**20)
    path = npz_with(tmp_path / "a.npz", (2**21,), bytes(2**24))
    assert path.stat().st_size < 2**17
    assert "rewards declares 16,777," in said(lambda: load(path))


@pytest.fixture(scope="module")
def minari_folder(tmp_path_factory) -> Path:
    minari = pytest.importorskip("minari")
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    path = tmp_path_factory.mktemp("minari")
    ends = {"terminations": [False] * 6, "truncations": [False] * 5 + [True], "rewards": [1.0] * 6, "infos": {}}
    obs, actions = np.random.default_rng(0).normal(size=(7, 4)), np.full((6, 2), 0.5, np.float32)
    buffers = [EpisodeBuffer(i, i, None, obs, actions, **ends) for i in range(2)]
    spaces = {"observation_space": Box(-np.inf, np.inf, (4,), np.float64), "action_space": Box(-1, 1, (2,))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(path))
        minari.create_dataset_from_buffers("edges-v0", buffers, requirements=[], **spaces)
    return path / "edges-v0"


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -1], "high": [1, 1]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        {"total_episodes": 10**12}, {"total_episodes": "2"}, {"total_episodes": None}, {"total_episodes": True},
        {"action_space": None}, {"action_space": "[]"}, {"action_space": "{"}, {"action_space": "5"},
        {"action_space": json.dumps(BOX | {"shape": "x"})}, {"action_space": json.dumps(BOX | {"low": [1, 1]})},
        {"action_space": json.dumps(BOX | {"dtype": "S5"})}, {"action_space": json.dumps(BOX | {"low": None})},
        {"action_space": json.dumps(BOX | {"shape": [3], "low": [-1] * 3, "high": [1] * 3})},
        {"data_format": 5}, {"minari_version": 5}, {"env_spec": 5}, {"env_spec": "["}, {"dataset_id": None},
        {"author": 5}, {"total_steps": "x", "total_episodes": 10**5},
    ],
)  # fmt: skip
def test_minari_of_other_metadata(tmp_path, minari_folder, change: dict[str, Any]) -> None:
    path = tmp_path / "edges-v0"
    shutil.copytree(minari_folder, path)
    metadata = path / "data" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), **change}))
    assert str(path) in said(lambda: load(path))


@pytest.mark.filterwarnings("ignore")
def test_minari_without_spaces_runs_nothing(tmp_path, minari_folder) -> None:
    """Minari would call the function that `env_spec` names, to ask it for them."""
    path = tmp_path / "edges-v0"
    shutil.copytree(minari_folder, path)
    spec = {"id": "X-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(tmp_path / "made")}}
    metadata = path / "data" / "metadata.json"
    content = json.loads(metadata.read_text())
    metadata.write_text(
        json.dumps({k: v for k, v in content.items() if "space" not in k} | {"env_spec": json.dumps(spec)})
    )
    assert "expected a space as JSON text" in said(lambda: load(path))
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore")
def test_minaris_file_is_held_against_its_size_and_reads_no_other(tmp_path, minari_folder) -> None:
    path = tmp_path / "edges-v0"
    shutil.copytree(minari_folder, path)
    (tmp_path / "secret").write_bytes(b"secret!!" * 6)
    with h5py.File(path / "data" / minari_local.MAIN_DATA, "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (2**40,), "f8", chunks=(1024,))
    assert "episode_1/rewards declares" in said(lambda: load(path))
    with h5py.File(path / "data" / minari_local.MAIN_DATA, "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (6,), "f8", external=[(str(tmp_path / "secret"), 0, 48)])
    assert "has its numbers in another file" in said(lambda: load(path))


# what a file says of its environment


@pytest.mark.parametrize("hertz", [1e-6, 0, -20, 1e9, float("nan"), float("inf"), "20", None, True])
def test_control_frequencies_that_a_simulator_can_do(hertz: Any) -> None:
    assert "control_freq=" in said(lambda: complete_env_kwargs("Lift", {"control_freq": hertz}))


@pytest.mark.parametrize("robots", [5, None, [], ["Panda"] * 1000, [5], [["Panda"]]])
def test_robots_are_a_few_names(robots: Any) -> None:
    assert "task.env_kwargs.robots" in said(lambda: complete_env_kwargs("Lift", {"robots": robots}))


@pytest.mark.parametrize("configs", [5, [5], [{}, {}], [None], "NONE"])
def test_controllers_of_other_kinds(configs: Any) -> None:
    assert "controller" in said(lambda: complete_env_kwargs("Lift", {"controller_configs": configs}))


@pytest.mark.parametrize("configs", ["/etc/x.json", ["a.json"]])
def test_controllers_of_a_data_file_are_no_files(configs: Any) -> None:
    env_args = {"env_name": "Lift", "type": 1, "env_kwargs": {"controller_configs": configs}}
    assert "not a file of it" in said(lambda: task_from_env_args(env_args))


@pytest.mark.parametrize("frames", [0, 10**9, 1.5, "4", None])
def test_frames_that_a_step_can_have(frames: Any) -> None:
    task = TaskConfig("hopper", "gymnasium", "Hopper-v5", 10, env_kwargs={"frame_skip": frames})
    assert "frame_skip=" in said(lambda: make_gymnasium(task))


@pytest.mark.parametrize(
    "attributes", ['pos="1 2"', 'pos="a b c"', 'pos="1 2 nan"', 'quat="1 0 0"', 'pos=""', 'pos="1,2,3"']
)
def test_places_in_a_recorded_model_are_numbers(attributes: str) -> None:
    model = SimpleNamespace(
        body_names=["door"],
        body_name2id=lambda name: 0,
        body_weldid=[0],
        body_pos=np.zeros((1, 3)),
        body_quat=np.zeros((1, 4)),
    )
    env = SimpleNamespace(sim=SimpleNamespace(model=model), robots=[])
    good = _parse('<mujoco><body name="door" pos="1 2 3"/></mujoco>', "a: episode b")
    assert good is not None
    _place_fixed_bodies(env, good, "a: episode b")
    assert model.body_pos.tolist() == [[1, 2, 3]] and model.body_quat.tolist() == [[1, 0, 0, 0]]
    xml = _parse(f'<mujoco><body name="door" {attributes}/></mujoco>', "a: episode b")
    assert xml is not None
    assert said(lambda: _place_fixed_bodies(env, xml, "a: episode b")).startswith("a: episode b: ")


@pytest.mark.parametrize("state", [{"a": np.arange(3)}, {"b": (1, "x", None)}])
def test_states_are_still_read(tmp_path, state: dict[str, Any]) -> None:
    save_state(tmp_path / "s.pt", state)
    assert repr(load_state(tmp_path / "s.pt")) == repr(state)


def test_readers_that_are_asked_directly(tmp_path) -> None:
    assert "no such file" in said(lambda: dppo_npz.read(tmp_path / "a.npz"))
    assert "no such file" in said(lambda: d4rl.read(tmp_path / "a.hdf5"))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), {"a": float("inf")}])
def test_numbers_of_an_environment_are_finite(value: Any) -> None:
    with pytest.raises(BurnishError, match=r"env_kwargs\.ctrl_cost_weight=.*: expected finite numbers"):
        TaskConfig("t", "gymnasium", "Hopper-v5", 10, env_kwargs={"ctrl_cost_weight": value})
    TaskConfig("t", "gymnasium", "Hopper-v5", 10, env_kwargs={"healthy_z_range": [0.7, float("inf")]})


@pytest.mark.parametrize("number", [0, -1, 2**40])
def test_so_many_threads_nobody_has(number: int) -> None:
    with pytest.raises(BurnishError, match=f"torch_threads={number}: expected 1 to 4096"):
        DeviceConfig(torch_threads=number)
    with pytest.raises(BurnishError, match=f"torch_threads={number}: expected 1 to 4096"):
        resolve_device("cpu", number)
