"""Nothing is silently wrong, nothing is lost: copied run folders, numbers that are none, keys as people write them."""

from __future__ import annotations

import dataclasses
import errno
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from burnish.commands.cli import main
from burnish.compare.config import read_config
from burnish.compose import CONFIGS, compose, config_class, parse_value
from burnish.config import Checked, load_yaml, parse
from burnish.errors import BurnishError
from burnish.networks.optimise import clipped_step, skipped_updates
from burnish.policies.folder import policy_folder
from burnish.pretrain.behaviour_cloning import BehaviourCloning
from burnish.runs.checkpoint import Checkpoints, PretrainState
from burnish.runs.folder import Run


def write(folder: Path) -> None:
    """What stands for a policy and for the rest of a run."""
    for name in ("policy.json", "policy.safetensors", "trainer.pt"):
        (folder / name).write_text(folder.name)


def saved(folder: Path, *steps: int, best: int | None = None, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, write)
        if step == best:
            checkpoints.mark_best(step)
    return checkpoints


def no_links(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_a_copy_that_followed_the_links_goes_on(tmp_path: Path) -> None:
    saved(tmp_path / "run/checkpoints", 1, 2, 3, best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    folder = tmp_path / "copy/checkpoints"
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == folder / "step_00000003"
    assert checkpoints.best() == folder / "best"
    checkpoints.save(4, write)
    assert policy_folder(folder / "best") == folder / "best" and (folder / "best/policy.json").is_file()
    checkpoints.mark_best(4)
    assert policy_folder(folder / "latest").resolve().name == policy_folder(folder / "best").resolve().name
    assert checkpoints.best() == folder / "step_00000004"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "latest", "step_00000003", "step_00000004"]


@pytest.mark.parametrize("kept", ["latest", "best"])
def test_of_a_copy_one_folder_is_enough(tmp_path: Path, kept: str) -> None:
    saved(tmp_path / "run/checkpoints", 1, best=1)
    shutil.copytree(tmp_path / "run/checkpoints/step_00000001", tmp_path / "copy/checkpoints" / kept)
    assert policy_folder(tmp_path / "copy/checkpoints" / kept).name == kept
    if kept == "latest":
        assert policy_folder(tmp_path / "copy") == tmp_path / "copy/checkpoints/latest"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EOPNOTSUPP, "Operation not supported"), PermissionError(errno.EPERM, "no"), NotImplementedError()],
)
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    no_links(monkeypatch, error)
    checkpoints = saved(tmp_path, 1, 2, 3, best=1, keep=1)
    assert checkpoints.best() == tmp_path / "step_00000001"
    assert (tmp_path / "best").read_text().strip() == "step_00000001"
    assert policy_folder(tmp_path / "best") == tmp_path / "step_00000001"
    assert policy_folder(tmp_path / "latest") == tmp_path / "step_00000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step_00000001", "step_00000003"]


def test_links_that_became_files_become_links_again(tmp_path: Path) -> None:
    """Git without core.symlinks writes the link's target into a file, without a line feed."""
    checkpoints = saved(tmp_path, 1, 2, best=1)
    for name in ("latest", "best"):
        target = (tmp_path / name).readlink()
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(str(target))
    assert checkpoints.best() == tmp_path / "step_00000001" == policy_folder(tmp_path / "best")
    checkpoints.save(3, write)
    assert (tmp_path / "latest").is_symlink() and checkpoints.best() == tmp_path / "step_00000001"


@pytest.mark.parametrize(
    "name",
    [
        "step_00000004_backup",
        "step_00000009.bak",
        "step_00000009 (copy)",
        "step_best",
        "step_9",
        "old",
        "step_-0000009",
    ],
)
def test_other_folders_are_neither_read_nor_deleted(tmp_path: Path, name: str) -> None:
    checkpoints = saved(tmp_path, 4)
    shutil.copytree(tmp_path / "step_00000004", tmp_path / name)
    assert checkpoints.latest() == tmp_path / "step_00000004"
    for step in (5, 6, 7):
        checkpoints.save(step, write)
    assert (tmp_path / name / "policy.json").is_file() and checkpoints.latest() == tmp_path / "step_00000007"


def test_what_is_no_folder_or_empty_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / "step_00000008").mkdir()
    (tmp_path / "step_00000009").write_text("")
    assert checkpoints.latest() == tmp_path / "step_00000004"


def test_a_copy_cut_short_is_told_and_the_one_before_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "checkpoints", 4, 5)
    (tmp_path / "checkpoints/step_00000005/policy.safetensors").unlink()
    assert policy_folder(tmp_path).name == "step_00000004"
    assert "step_00000005 is no whole checkpoint, it lacks policy.safetensors" in capsys.readouterr().err
    (tmp_path / "checkpoints/step_00000004/policy.safetensors").unlink()
    with pytest.raises(BurnishError, match=r"step_00000005 is not a policy folder: policy\.safetensors is missing"):
        policy_folder(tmp_path)


def test_a_copy_without_links_keeps_its_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, best=1)
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to("step_00000099")  # dangling, as a copy of some folders has it
    assert checkpoints.best() is None
    checkpoints.keep_best(7)
    assert checkpoints.best() is None
    checkpoints.keep_best(1)
    for step in (4, 5):
        checkpoints.save(step, write)
    assert checkpoints.best() == tmp_path / "step_00000001"


Optimizer = torch.optim.Optimizer
OPTIMIZERS = [
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True),
    lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
    lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
]


def loss_of(weights: torch.Tensor, x: float) -> torch.Tensor:
    """Its gradient is x * weights, of the length sqrt(3) * x while they are ones."""
    return 0.5 * x * weights.square().sum()


def plain_step(optimizer: Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf, 3e38])
def test_a_bad_update_is_as_if_it_had_not_been(make: Any, x: float) -> None:
    """Torch's own steps of the good ones give the same weights and the same state, bit for bit."""
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer, reference = make([ours]), make([theirs])
    told = []
    for each in (1.0, 0.5, x, 2.0, 0.1, x, 1.5):
        told.append(float(clipped_step(optimizer, loss_of(ours, each), 1.0)))
        if each is not x:
            plain_step(reference, loss_of(theirs, each))
    assert told == [0, 0, 1, 0, 0, 1, 0]
    assert torch.equal(ours, theirs)
    for name, value in reference.state[theirs].items():
        assert torch.equal(torch.as_tensor(optimizer.state[ours][name]), torch.as_tensor(value)), name
    assert skipped_updates(optimizer) == {"skipped_updates": 2}
    assert skipped_updates(optimizer) == {}  # since then


def test_a_loss_that_is_no_number_is_bad_though_its_gradient_is_one() -> None:
    weights = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], fused=True)
    assert clipped_step(optimizer, loss_of(weights, 1.0) + math.nan, 1.0) == 1
    assert torch.equal(weights, torch.ones(3))


def steps_of(losses: list[float]) -> Optimizer:
    weights = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=1e-3, fused=True)
    for x in losses:
        clipped_step(optimizer, loss_of(weights, x), 1.0)
    return optimizer


def test_healthy_updates_say_nothing() -> None:
    assert skipped_updates(steps_of([])) == {}
    assert skipped_updates(steps_of([1.0] * 5)) == {}


@pytest.mark.parametrize("losses", [[math.nan] * 10, [math.nan] * 10 + [1.0] * 10, [1.0, math.nan] * 10])
def test_a_few_bad_updates_do_not_stop_a_run(losses: list[float]) -> None:
    assert skipped_updates(steps_of(losses)) == {"skipped_updates": 10}


@pytest.mark.parametrize(
    "losses, said",
    [
        ([1.0] * 100 + [math.nan] * 11, "11 in a row"),
        ([math.inf] * 30, "30 in a row"),
        (([math.nan] * 5 + [1.0]) * 4, "20 of 24"),
    ],
)
def test_many_bad_updates_stop_it_in_one_line(losses: list[float], said: str) -> None:
    with pytest.raises(BurnishError, match=rf"\({said}\).*last checkpoint.*learning rate") as error:
        skipped_updates(steps_of(losses))
    assert "\n" not in str(error.value)


def test_bad_updates_are_counted_over_two_looks_and_for_each_optimizer() -> None:
    weights, others = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    one, other = torch.optim.Adam([weights], fused=True), torch.optim.Adam([others], fused=True)
    for _ in range(8):
        clipped_step(one, loss_of(weights, math.nan), 1.0)
        clipped_step(other, loss_of(others, 1.0), 1.0)
    stage = SimpleNamespace(actor_optimizer=one, critic=SimpleNamespace(optimizer=other), name="of another kind")
    assert skipped_updates(stage) == {"skipped_updates": 8}
    for _ in range(3):
        clipped_step(one, loss_of(weights, math.nan), 1.0)
        clipped_step(other, loss_of(others, 1.0), 1.0)
    with pytest.raises(BurnishError, match="11 in a row"):
        skipped_updates(SimpleNamespace(critic=SimpleNamespace(optimizer=one)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 2])
def test_bad_weights_are_never_written_over_good_ones(tmp_path: Path, bad: float, step: int) -> None:
    def policy(value: float) -> Any:
        return lambda folder: save_file(
            {"a": torch.zeros(2), "b": torch.tensor([1.0, value])}, folder / "policy.safetensors"
        )

    (tmp_path / "checkpoints").mkdir()
    run = SimpleNamespace(checkpoints=Checkpoints(tmp_path / "checkpoints"), n_metric_lines=0, data=None)
    state = PretrainState({}, (0.0, 0.0))
    Run.save_checkpoint(run, 1, policy(2.0), state)  # type: ignore[arg-type]
    with pytest.raises(BurnishError, match=r"weights are not finite \(b\)"):
        Run.save_checkpoint(run, step, policy(bad), state)  # type: ignore[arg-type]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_00000001"]
    assert (tmp_path / "checkpoints/latest/trainer.pt").is_file()


class OneBadLoss(torch.nn.Module):
    """Stands for a policy: the loss of the third batch is NaN, the others are 1, 2, 4, 5."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(2))
        self.calls = 0

    def loss(self, *_: Any) -> torch.Tensor:
        self.calls += 1
        return 0 * self.weights.sum() + (math.nan if self.calls == 3 else float(self.calls))


def test_pretraining_reports_the_mean_of_the_losses_that_are_numbers() -> None:
    train = SimpleNamespace(
        batch_size=1, learning_rate=1e-3, weight_decay=0.0, warmup_steps=0, ema_decay=0.5, max_grad_norm=1.0,
        precision="float32", steps=lambda per_epoch: per_epoch,
    )  # fmt: skip

    class Five:
        def __len__(self) -> int:
            return 5

        def batch(self, indices: Any) -> Any:
            return SimpleNamespace(obs=None, actions=None)

    policy: Any = OneBadLoss()
    config: Any = SimpleNamespace(train=train, seed=0)
    trainer = BehaviourCloning(config, policy, Five(), None)  # type: ignore[arg-type]
    for _ in range(5):
        trainer.update()
    assert trainer.metrics()["loss"] == pytest.approx((1 + 2 + 4 + 5) / 4)
    assert skipped_updates(trainer) == {"skipped_updates": 1}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    "command, words, key",
    [
        ("pretrain", [], "run_dir"),
        ("pretrain", [], "dataset"),
        ("pretrain", [], "resume"),
        ("finetune", [], "policy"),
        ("offline", ["stage=idql"], "stage.demos"),
        ("evaluate", ["policy=x"], "out"),
        ("collect", ["out=x.hdf5"], "behaviour"),
        ("headroom", ["policy=x"], "expert"),
    ],
)
@pytest.mark.parametrize("quote", ["", "'"])
def test_the_home_folder_is_expanded_in_every_path(
    home: Path, command: str, words: list[str], key: str, quote: str
) -> None:
    word = f"{key}={quote}~/a b{quote}" if key != "expert" else f"{key}='~/a b'"
    found: Any = compose(command, ["task=hopper", *words, word])
    for part in key.split("."):
        found = found[part]
    assert found == f"{home}/a b"
    if key != "expert":
        assert parse_value(word) == found


def test_the_home_folder_is_expanded_in_files(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "task.yaml").write_text("name: lift\nsuite: none\ndataset: ~/lift.hdf5\nenv_kwargs: {out: ~/x}\n")
    task = compose("pretrain", ["task=~/task.yaml"])["task"]
    assert task["dataset"] == f"{home}/lift.hdf5" and task["env_kwargs"] == {"out": "~/x"}  # that is the simulator's
    (home / "c.yaml").write_text(
        "run_dir: ~/runs\ntuned: ~/tuned.yaml\ntasks: {lift: {policy: '~/p-seed{seed}'}}\nmethods: {a: [stage=dppo]}\n"
    )
    config = read_config(Path("~/c.yaml"))
    assert (config.run_dir, config.tuned) == (f"{home}/runs", f"{home}/tuned.yaml")
    assert config.tasks["lift"].policy == f"{home}/p-seed{{seed}}"


def test_a_home_folder_that_there_is_not_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match=r"run_dir=~nobody_here/run: there is no such home folder"):
        compose("pretrain", ["task=lift", "run_dir=~nobody_here/run"])
    (tmp_path / "~lock.hdf5").write_text("")
    assert compose("pretrain", ["task=lift", "dataset=~lock.hdf5"])["dataset"] == "~lock.hdf5"


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e6", 1e6), ("1E6", 1e6), ("1e-3", 0.001), ("-2e4", -2e4), ("+1e3", 1e3), (".5e3", 500.0), ("1.e3", 1e3),
        ("1.5e3", 1500.0), ("1.0e+6", 1e6), ("[1e2, 2]", [100.0, 2]), ("{a: {b: 1e6}}", {"a": {"b": 1e6}}),
        ("'1e6'", "1e6"), ("1e6x", "1e6x"), ("e6", "e6"), ("stage.actor_lr=1e-4", "stage.actor_lr=1e-4"),
        ("1e-4: x", {"1e-4": "x"}), ("100", 100), ("true", True), ("null", None),
    ],
)  # fmt: skip
def test_powers_of_ten_are_numbers_in_yaml(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


def test_powers_of_ten_are_numbers_in_every_file(home: Path, tmp_path: Path) -> None:
    Path("c.yaml").write_text(
        "name: x\ntasks: {hopper: {}}\ntotal_env_steps: 1e6\nmax_minutes: 1e1\nmethods: {a: [stage=sac]}\n"
        "tuning: {seeds: [1e2], methods: {a: {1e-4: [stage.actor_lr=1e-4], 1e-3: [stage.actor_lr=1e-3]}}}\n"
    )
    config = read_config(Path("c.yaml"))
    assert (config.total_env_steps, config.max_minutes) == (1_000_000, 10.0)
    assert config.tuning is not None and config.tuning.seeds == [100]
    assert list(config.tuning.methods["a"]) == ["1e-4", "1e-3"]
    assert read_config(Path("c.yaml"), ["total_env_steps=2e5"]).total_env_steps == 200_000
    Path("task.yaml").write_text(
        "name: hopper\nsuite: gymnasium\nenv_id: Hopper-v5\nmax_episode_steps: 1e2\n"
        "env_kwargs: {reset_noise_scale: 1e-3}\n"
    )
    task = compose("pretrain", ["task=task.yaml"])["task"]
    assert task["env_kwargs"] == {"reset_noise_scale": 0.001} and task["max_episode_steps"] == 100


@pytest.mark.parametrize(
    "command, word",
    [
        ("pretrain", "seed=20240101123456"),
        ("pretrain", "seed=2147483648"),
        ("pretrain", "seed=-1"),
        ("finetune", "seed=1e20"),
        ("finetune", "evaluation.seed=20240101123456"),
        ("finetune", "evaluation.selection_seed=20240101123456"),
        ("scratch", "seed=4294967296"),
        ("evaluate", "seed=20240101123456"),
        ("headroom", "seed=20240101123456"),
    ],
)
def test_a_seed_out_of_range_is_refused_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], command: str, word: str
) -> None:
    policy = [] if command in ("pretrain", "scratch") else ["policy=nowhere"]
    folder = "out=run" if command in ("evaluate", "headroom") else "run_dir=run"
    assert main([command, "task=hopper", *policy, folder, word]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and f"{word.partition('=')[0]}=" in lines[0] and "0 to 2147483647" in lines[0]


@pytest.mark.parametrize("seeds", ["[20240101123456]", "[0, -1]"])
def test_seeds_of_a_comparison_out_of_range_are_refused(home: Path, tmp_path: Path, seeds: str) -> None:
    Path("c.yaml").write_text(f"tasks: {{hopper: {{}}}}\nmethods: {{a: [stage=sac]}}\nseeds: {seeds}\n")
    with pytest.raises(BurnishError, match=r"c\.yaml: seeds=.*: expected 0 to 2147483647 each"):
        read_config(Path("c.yaml"))


def subclasses(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)


def test_nan_is_no_value_of_any_key() -> None:
    """Of all dataclasses of settings: a key that takes numbers refuses NaN, alone and in a list."""
    for command in CONFIGS:
        config_class(command)
    tried = 0
    for cls in {each for each in subclasses(Checked) if each.__module__.startswith("burnish.")}:
        for field in dataclasses.fields(cls):
            if "float" not in str(field.type):
                continue
            for value in (math.nan, [1.0, math.nan], {"a": {"b": [math.nan]}}):
                blank = object.__new__(cls)
                for other in dataclasses.fields(cls):
                    object.__setattr__(blank, other.name, None)
                object.__setattr__(blank, field.name, value)
                with pytest.raises(BurnishError, match=f"{field.name}=.*nan"):
                    Checked.__post_init__(blank)
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("value", [math.nan, {"x": math.nan}, {"x": [{"y": math.nan}]}])
def test_nan_is_refused_in_what_a_simulator_is_given(value: Any) -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings(Checked):
        env_kwargs: Any

    with pytest.raises(BurnishError, match=r"env_kwargs=.*nan"):
        parse(Settings, {"env_kwargs": value})
    assert parse(Settings, {"env_kwargs": {"healthy_z_range": [0.7, math.inf]}}).env_kwargs
