"""The grid of `burnish compare`: what its cells are, finished ones stay, failed ones are told, killed ones go on."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from burnish.commands.cli import main
from burnish.compare import reproduce
from burnish.compare import start as compare_start
from burnish.compare.config import read_config
from burnish.compare.display import Display
from burnish.compare.grid import Grid, Standing, State, is_finished, last_line
from burnish.compare.local_runner import LocalRunner
from burnish.compare.plan import PlannedRun, plan, resolve
from burnish.compare.tune import Trial, chosen_among, plan_tuning
from burnish.config import to_dict
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import about
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.runs.metrics import read_metrics

TINY = [
    "n_envs=2",
    "total_env_steps=120",
    "task.max_episode_steps=30",
    "evaluation.episodes=2",
    "evaluation.n_envs=2",
    "network.denoiser.hidden_dim=16",
    "network.denoising_steps=5",
    "checkpoint_every=20",
]
OFF_POLICY = ["stage.random_steps=0", "stage.learning_starts=10", "stage.batch_size=8", "stage.update_every=5"]
METHODS = {
    "dpmd": ["stage=dpmd_scratch", *OFF_POLICY],
    "sdac": ["stage=sdac_scratch", *OFF_POLICY],
}


def write(path: Path, **content) -> Path:
    full = {
        "run_dir": str(path.parent / "runs"),
        "tasks": {"inverted_pendulum": {}},
        "methods": METHODS,
        "seeds": [0, 1],
        "settings": TINY,
        "memory_gb": 8,
        "cell_memory_gb": 2,
        **content,
    }
    path.write_text(yaml.safe_dump(full, sort_keys=False))
    return path


def cells_of(path: Path) -> list[PlannedRun]:
    return plan(read_config(path))


def results(cells: list[PlannedRun]) -> dict[str, list[dict]]:
    """What a repetition must repeat: every line of metrics but the wall-clock."""
    return {
        str(cell): [
            {key: value for key, value in line.items() if not key.startswith("time/")}
            for line in read_metrics(cell.folder / "metrics.jsonl")
        ]
        for cell in cells
    }


def test_cells_are_commands_anyone_could_type(tmp_path):
    path = write(
        tmp_path / "a.yaml",
        tasks={
            "lift": {"pretrain": ["train.epochs=3"], "settings": ["n_envs=4"], "methods": {"dpmd": ["seed=7"]}},
            "hopper": {"policy": "runs/p{seed}"},
        },
        methods={"dppo": ["stage=dppo", "total_env_steps=9000"], "dpmd": ["stage=dpmd"]},
        settings=["n_envs=2", "evaluation.episodes=5"],
        total_env_steps=5000,
        run_dir="runs/a",
    )
    cells = cells_of(path)
    assert [cell[:4] for cell in cells[:4]] == [
        ("lift", "pretrain", 0, "pretrain"),
        ("lift", "pretrain", 1, "pretrain"),
        ("lift", "dppo", 0, "finetune"),
        ("lift", "dpmd", 0, "finetune"),
    ]
    assert len(cells) == 2 + 2 * 2 * 2
    assert set(cells[0].words) == {
        "task=lift", "torch_threads=1", "evaluation.backend=sync", "train.epochs=3", "seed=0",
        "run_dir=runs/a/lift/pretrain/seed0",
    }  # fmt: skip
    assert "seed=0" in cells[3].words and "seed=7" not in cells[3].words
    assert set(cells[6].words) == {
        "task=lift", "torch_threads=1", "backend=sync", "evaluation.backend=sync", "n_envs=4", "evaluation.episodes=5",
        "stage=dppo", "total_env_steps=9000", "policy=runs/a/lift/pretrain/seed1", "seed=1",
        "run_dir=runs/a/lift/dppo/seed1",
    }  # fmt: skip
    assert "policy=runs/p1" in cells[-1].words and "total_env_steps=5000" in cells[-1].words


def test_a_method_can_start_from_another_of_the_pretrained_policies(tmp_path):
    path = write(
        tmp_path / "a.yaml",
        tasks={"lift": {"pretrain": {"diffusion": [], "gaussian": ["policy=gaussian"]}}},
        methods={"dppo": ["stage=dppo"], "ppo": ["stage=ppo", "policy=gaussian"]},
        settings=[],
        run_dir="runs/a",
        seeds=[4],
    )
    cells = cells_of(path)
    assert [cell.method for cell in cells] == ["pretrain-diffusion", "pretrain-gaussian", "dppo", "ppo"]
    assert [cell.is_compared for cell in cells] == [False, False, True, True]
    assert "policy=runs/a/lift/pretrain-diffusion/seed4" in cells[2].words
    assert "policy=runs/a/lift/pretrain-gaussian/seed4" in cells[3].words
    grid = Grid(tmp_path, cells)
    assert [grid.source(cell) and grid.source(cell).cell.method for cell in cells] == [
        None, None, "pretrain-diffusion", "pretrain-gaussian",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"pretrain": []}, "tasks": {"lift": {"pretrain": []}}}, "methods.pretrain: taken"),
        ({"tasks": {"lift": {"pretrain": {}}}}, "tasks.lift.pretrain is empty"),
        ({"methods": {"a/b": []}}, "methods.a/b: it names a folder"),
        ({"seeds": [1, 1]}, "seeds=[1, 1]: expected different ones"),
        ({"sedes": [1]}, "unknown key sedes: did you mean seeds"),
        ({"tasks": {"lift": {"methods": {"x": []}}}}, "tasks.lift.methods.x: expected one of dpmd, sdac"),
        ({"tasks": {"lift": {"policy": "a", "pretrain": []}}}, "expected one of them, or none"),
        ({"tasks": {"lfit": {}}}, "task=lfit: did you mean lift"),
        ({"methods": {"a": ["stage=dpmd", "stage.utd_ration=1"]}}, "inverted_pendulum a seed 0: unknown key stage.utd"),
        ({"methods": {"a": ["stage=dpmd", "stage.utd_ratio=-1"]}}, "stage.utd_ratio=-1.0: expected more than 0"),
        (
            {"methods": {**METHODS, "a": ["stage=dpmd_scratch", *OFF_POLICY, "evaluation.seed=5"]}},
            "inverted_pendulum: evaluation.seed is 100000 and 5: expected the same for all methods",
        ),
        ({"cores": 0}, "cores=0: expected more than 0"),
        ({"runner": "slurm"}, "runner=slurm: expected one of local, ray"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path, capsys, content, message):
    path = write(tmp_path / "a.yaml", **content)
    assert main(["compare", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_policy_that_is_not_there_is_told_before_anything_runs(tmp_path, capsys):
    path = write(tmp_path / "a.yaml", tasks={"lift": {"policy": "runs/none-seed{seed}"}}, settings=[])
    assert main(["compare", "--plan", str(path), "seeds=[3]"]) == 2
    assert "lift dpmd seed 3: policy=runs/none-seed3: there is no such folder" in capsys.readouterr().err
    assert main(["compare", str(path)]) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tasks", "words", "message"),
    [
        ({"lift": {"pretrain": ["policy=gaussian"]}}, [], "but policy=runs/a/lift/pretrain/seed0 is a gaussian one"),
        ({"hopper": {}}, ["network=gaussian"], "but the network is a gaussian one: give network=mlp"),
    ],
)
def test_a_method_that_cannot_train_such_a_policy_is_told_before_anything_runs(tmp_path, capsys, tasks, words, message):
    path = write(tmp_path / "a.yaml", tasks=tasks, settings=[], methods={"a": ["stage=dppo", *words]}, run_dir="runs/a")
    assert main(["compare", "--plan", str(path)]) == 2
    assert f"a seed 0: stage=dppo trains a diffusion or a flow policy, {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "words", "cell"),
    [
        ({"lift": {"pretrain": ["dataset=none.hdf5"]}}, ["stage=dpmd"], "lift pretrain"),
        ({"lift": {"pretrain": []}}, ["stage=dpmd", "stage.demos=none.hdf5"], "lift a"),
        ({"halfcheetah": {}}, ["stage=dpmd"], "halfcheetah a"),
    ],
)
def test_demonstrations_that_are_not_there_are_told_before_anything_runs(tmp_path, capsys, tasks, words, cell):
    path = write(tmp_path / "a.yaml", tasks=tasks, settings=[], methods={"a": words})
    assert main(["compare", str(path)]) == 2
    missing = "task=halfcheetah names" if "halfcheetah" in tasks else "none.hdf5: no such"
    assert f"{cell} seed 0: {missing}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_method_whose_extra_is_missing_is_told_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    path = write(tmp_path / "a.yaml", settings=[], methods={"a": ["stage=sac", "network=gaussian"]})
    assert main(["compare", str(path)]) == 2
    assert "a seed 0: stage=sac needs stable-baselines3: pip install" in capsys.readouterr().err


def test_a_file_that_is_no_comparison(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("[1, 2]")
    assert main(["compare", str(tmp_path / "list.yaml")]) == 2
    assert "list.yaml: expected keys and values" in capsys.readouterr().err


def test_overrides_replace_what_the_file_says(tmp_path):
    path = write(tmp_path / "a.yaml")
    config = read_config(path, ["seeds=[3]", "tasks.hopper.policy=runs/x", "methods.mine=[stage=dpmd]"])
    assert config.seeds == [3] and config.tasks["hopper"].policy == "runs/x"
    assert list(config.methods) == ["dpmd", "sdac", "mine"] and config.name == "a"


def test_more_than_the_machine_has_is_refused(tmp_path):
    config = read_config(write(tmp_path / "a.yaml"), ["cores=1", "cell_cores=2"])
    with pytest.raises(BurnishError, match="lower cell_cores or cell_memory_gb"):
        LocalRunner(config, lock=0)
    assert LocalRunner(read_config(tmp_path / "a.yaml", ["cores=9", "memory_gb=7"]), lock=0).places == 3


class InstantRunner:
    """Runs a cell at once: one whose name is in `failing` fails, the others write a summary."""

    def __init__(self, failing=(), places=2):
        self.failing, self.places = failing, places
        self.started, self.done = [], []

    def has_room(self):
        return len(self.done) < self.places

    def start(self, cell, words, log):
        self.started.append((str(cell), words))
        log.write_text("burnish: error: no such luck\n")
        status = 2 if str(cell) in self.failing else 0
        if status == 0:
            cell.folder.mkdir(parents=True, exist_ok=True)
            settings = [word for word in words[1:] if word != "overwrite=true"]
            assert settings == list(cell.words) or words[1].startswith("resume=")
            (cell.folder / "config.yaml").write_text(yaml.safe_dump(to_dict(resolve(cell))))
            (cell.folder / "summary.json").write_text("{}")
        self.done.append((cell, status))

    def ended(self):
        done, self.done = self.done, []
        return done

    def stop(self):
        raise AssertionError("nobody asked")


@pytest.fixture
def with_pretraining(tmp_path) -> Path:
    return write(
        tmp_path / "a.yaml",
        tasks={"lift": {"pretrain": []}},
        settings=[],
        methods={"a": ["stage=dpmd"], "b": ["stage=dppo"]},
    )


def run_instantly(path: Path, runner: InstantRunner) -> Grid:
    grid = Grid(path.parent / "runs", cells_of(path))
    assert grid.run(runner, lambda cells: None)
    return grid


def test_pretraining_comes_first_and_its_failure_is_that_of_its_cells(with_pretraining):
    runner = InstantRunner(failing=["lift pretrain seed 1"])
    grid = run_instantly(with_pretraining, runner)
    assert [name for name, _ in runner.started[:2]] == ["lift pretrain seed 0", "lift pretrain seed 1"]
    assert {str(cell): message for cell, message in grid.unfinished.items()} == {
        "lift pretrain seed 1": "exit status 2: burnish: error: no such luck",
        "lift a seed 1": "it has no policy to start from: see lift pretrain seed 1",
        "lift b seed 1": "it has no policy to start from: see lift pretrain seed 1",
    }
    assert len(runner.started) == 4


def test_finished_cells_stay_and_changed_ones_do_not(with_pretraining, capsys):
    run_instantly(with_pretraining, InstantRunner())
    again = InstantRunner()
    run_instantly(with_pretraining, again)
    assert again.started == []
    content = yaml.safe_load(with_pretraining.read_text())
    content["methods"]["b"].append("stage.gamma=0.9")
    content["cell_cores"] = 2  # another machine, the same results
    with_pretraining.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["compare", "--plan", str(with_pretraining)]) == 0
    told = [line.partition(" # ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == ["finished"] * 3 + ["made by another configuration or policy, runs again", "finished", told[3]]
    run_instantly(with_pretraining, again)
    assert [name for name, _ in again.started] == ["lift b seed 0", "lift b seed 1"]


def test_another_spelling_of_the_same_folders_keeps_what_is_finished(with_pretraining, monkeypatch):
    monkeypatch.chdir(with_pretraining.parent)
    run_instantly(with_pretraining, InstantRunner())
    cells = plan(read_config(with_pretraining, ["run_dir=runs"]))
    assert str(cells[0].folder) == "runs/lift/pretrain/seed0" and all(map(is_finished, cells))


def test_asked_to_stop_nothing_more_is_started(with_pretraining):
    """Two of six cells are running, one of which had just ended; the other saves and stops."""

    class Stopping(InstantRunner):
        def start(self, cell, words, log):
            super().start(cell, words, log)
            if len(self.done) == 2:
                signal.raise_signal(signal.SIGTERM)

        def ended(self):
            return []

        def stop(self):
            (first, status), (second, _) = self.done
            self.ended = lambda: [(first, status), (second, 130)]

    runner = Stopping()
    grid = Grid(with_pretraining.parent / "runs", cells_of(with_pretraining))
    assert not grid.run(runner, lambda cells: None)
    assert [p.state.value for p in grid.cells] == ["finished", "stopped", *["waiting"] * 4]
    assert len(runner.started) == 2


def test_the_table_shows_what_is_in_brackets(tmp_path):
    cells = cells_of(write(tmp_path / "a.yaml"))
    shown = [Standing(cells[0], State.FAILED, "stage.demos=[/tmp/a]: pip install 'burnish[ray]'"), Standing(cells[1])]
    console = Console(width=200, file=io.StringIO())
    console.print(Display(tmp_path)._table(shown))
    text = console.file.getvalue()
    assert "stage.demos=[/tmp/a]: pip install 'burnish[ray]'" in text and "0 of 2 finished" in text


def test_what_started_from_another_policy_is_run_again(with_pretraining):
    run_instantly(with_pretraining, InstantRunner())
    content = yaml.safe_load(with_pretraining.read_text())
    content["tasks"]["lift"]["pretrain"] = ["train.epochs=7"]
    with_pretraining.write_text(yaml.safe_dump(content, sort_keys=False))
    runner = InstantRunner(failing=["lift pretrain seed 0"])
    grid = run_instantly(with_pretraining, runner)
    assert [name for name, _ in runner.started[2:]] == ["lift a seed 1", "lift b seed 1"]
    assert not is_finished(next(p.cell for p in grid.cells if str(p.cell) == "lift a seed 0"))


class TrainingRunner(InstantRunner):
    """Writes policies of the weights that `seed` gives, and in trainings what they started from."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def start(self, cell, words, log):
        super().start(cell, words, log)
        if cell.is_compared:
            config = resolve(cell)
            told = about(config.policy, config.task, config.evaluation).to_json()
            (cell.folder / "evaluation_before.json").write_text(json.dumps(told))
        else:
            torch.manual_seed(self.seed)
            policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=8)), 19, 7, ["flat"])
            policy.save(cell.folder / "checkpoints" / "step_00000001")


def test_of_a_pretraining_the_weights_decide_what_is_run_again(with_pretraining, capsys):
    def again(pretrain, seed: int) -> list[str]:
        content = yaml.safe_load(with_pretraining.read_text())
        content["tasks"]["lift"]["pretrain"] = pretrain
        with_pretraining.write_text(yaml.safe_dump(content, sort_keys=False))
        assert main(["compare", "--plan", str(with_pretraining)]) == 0
        runner = TrainingRunner(seed)
        grid = run_instantly(with_pretraining, runner)
        assert not grid.unfinished
        return [name for name, words in runner.started if words[0] == "finetune"]

    everything = ["lift a seed 0", "lift b seed 0", "lift a seed 1", "lift b seed 1"]
    assert again([], 0) == everything
    capsys.readouterr()
    assert again({"diffusion": []}, 0) == []  # trained once more, by another name
    assert again({"diffusion": ["evaluation.episodes=7"]}, 0) == []  # and once more, which the plan cannot know
    told = [line.partition(" # ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told[8:] == ["finished, if its policy comes out the same"] * 4
    assert again({"diffusion": ["train.epochs=7"]}, 1) == everything


def test_what_started_from_a_policy_that_was_trained_again_elsewhere_is_run_again(tmp_path):
    def train(seed: int) -> None:
        torch.manual_seed(seed)
        DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=8)), 11, 3, ["flat"]).save(tmp_path / "p")

    train(0)
    tasks = {"hopper": {"policy": str(tmp_path / "p")}}
    path = write(tmp_path / "a.yaml", tasks=tasks, methods={"a": ["stage=dppo"]}, settings=[], seeds=[0])
    run_instantly(path, InstantRunner())
    (cell,) = cells_of(path)
    config = resolve(cell)
    (cell.folder / "evaluation_before.json").write_text(
        json.dumps(about(config.policy, config.task, config.evaluation).to_json())
    )
    assert is_finished(cell)
    train(1)
    assert not is_finished(cell)
    train(0)
    assert is_finished(cell)  # the same weights
    (tmp_path / "p").rename(tmp_path / "moved")
    assert is_finished(cell)  # the policy may be thrown away
    write(
        path,
        tasks={"hopper": {"policy": str(tmp_path / "moved")}},
        methods={"a": ["stage=dppo"]},
        settings=[],
        seeds=[0],
    )
    (cell,) = cells_of(path)
    assert is_finished(cell)  # or be moved
    shutil.rmtree(tmp_path / "moved")
    assert not is_finished(cell)  # nothing tells that this one had those weights


def test_a_method_left_out_meanwhile_does_not_keep_its_old_result(with_pretraining):
    run_instantly(with_pretraining, InstantRunner())
    content = yaml.safe_load(with_pretraining.read_text())
    both = content["methods"]
    content["methods"], content["tasks"]["lift"]["pretrain"] = {"b": both["b"]}, ["train.epochs=7"]
    with_pretraining.write_text(yaml.safe_dump(content, sort_keys=False))
    run_instantly(with_pretraining, InstantRunner())
    content["methods"] = both
    with_pretraining.write_text(yaml.safe_dump(content, sort_keys=False))
    runner = InstantRunner()
    run_instantly(with_pretraining, runner)
    assert [name for name, _ in runner.started] == ["lift a seed 0", "lift a seed 1"]


def test_a_real_grid_its_failure_and_its_repair(tmp_path, capsys):
    """Two cells, one of which cannot succeed; then the same file, mended."""
    broken = [*METHODS["dpmd"], "stage.learning_starts=5000"]  # which no plan can know
    path = write(tmp_path / "a.yaml", seeds=[0], methods={"dpmd": METHODS["dpmd"], "broken": broken})
    assert main(["compare", str(path)]) == 1
    told = capsys.readouterr()
    assert "no result of inverted_pendulum broken seed 0: exit status 2" in told.err and "too few for one" in told.err
    assert "1 of 2 cells finished" in told.out
    assert "too few for one update" in (tmp_path / "runs" / "report.md").read_text()
    before = results(cells_of(path)[:1])
    path = write(path, seeds=[0], methods={"dpmd": METHODS["dpmd"], "broken": METHODS["dpmd"]})
    assert main(["compare", str(path)]) == 0
    assert results(cells_of(path)[:1]) == before
    assert results(cells_of(path))["inverted_pendulum broken seed 0"] == before["inverted_pendulum dpmd seed 0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[int], list[list[dict]]]:
    """Environment steps -> the metrics of each method's run by the local runner; each length is run once."""
    known: dict[int, list[list[dict]]] = {}

    def metrics(steps: int) -> list[list[dict]]:
        if steps not in known:
            path = tmp_path_factory.mktemp("undisturbed") / "a.yaml"
            write(path, seeds=[0], settings=[*TINY, f"total_env_steps={steps}"])
            assert main(["compare", str(path)]) == 0
            known[steps] = list(results(cells_of(path)).values())
        return known[steps]

    return metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "kill"), [("local", signal.SIGTERM), ("local", signal.SIGKILL), ("ray", signal.SIGTERM)]
)
def test_killed_in_the_middle_and_started_again(tmp_path, undisturbed, runner, kill):
    steps = 400
    if runner == "ray":
        pytest.importorskip("ray", reason="needs ray")
        steps = 1500  # its cancellation takes a second to arrive
    settings = [*TINY, f"total_env_steps={steps}"]
    path = write(tmp_path / "a.yaml", seeds=[0], settings=settings, runner=runner, cell_memory_gb=0.5)
    process = subprocess.Popen([sys.executable, "-m", "burnish.commands.cli", "compare", str(path)])
    cells = cells_of(path)
    deadline = time.monotonic() + 120
    while not any(
        (cell.folder / "checkpoints").is_dir() and list((cell.folder / "checkpoints").iterdir()) for cell in cells
    ):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(kill)
    assert process.wait(120) == (130 if kill is signal.SIGTERM else -kill)
    assert not all(is_finished(cell) for cell in cells)
    assert main(["compare", str(path)]) == 0
    assert list(results(cells).values()) == undisturbed(steps)


def test_two_comparisons_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_start, "LOCK_SECONDS", 0.0)
    taken = pytest.raises(BurnishError, match="another comparison runs in it")
    with compare_start.locked(tmp_path), taken, compare_start.locked(tmp_path):
        pass
    with compare_start.locked(tmp_path):  # free again
        pass


@pytest.mark.slow
def test_ray_makes_the_same_folders(tmp_path, undisturbed):
    pytest.importorskip("ray", reason="needs ray")
    ray = write(
        tmp_path / "ray.yaml", seeds=[0], runner="ray", cores=2, cell_memory_gb=0.5, run_dir=str(tmp_path / "ray")
    )
    assert main(["compare", str(ray)]) == 0
    assert list(results(cells_of(ray)).values()) == undisturbed(120)  # as TINY has it


TUNING = {
    "seeds": [100],
    "settings": ["total_env_steps=60"],
    "methods": {
        "dpmd": {"low": ["stage.actor_lr=1e-5"], "high": ["stage.actor_lr=1e-3"]},
        "best_of_n": {"low": ["stage.critic_lr=1e-5"], "high": ["stage.critic_lr=1e-3"]},
    },
}
CLONED = {
    "frozen": ["stage=frozen"],
    "dpmd": ["stage=dpmd", "stage.demo_ratio=0", *OFF_POLICY],
    "best_of_n": ["stage=best_of_n", "stage.demo_ratio=0", *OFF_POLICY],
}


def write_tuned(path: Path, **content) -> Path:
    """A comparison with a tuning, from policies of one kind for each seed."""
    settings = [word for word in TINY if not word.startswith("network.")]
    tasks = {"inverted_pendulum": {"policy": str(path.parent / "p{seed}")}}
    return write(path, **{"tasks": tasks, "methods": CLONED, "settings": settings, "tuning": TUNING, **content})


def test_a_tuning_is_a_comparison_on_other_seeds_and_episodes(tmp_path):
    path = write_tuned(tmp_path / "a.yaml", tasks={"lift": {"pretrain": ["train.epochs=3"]}}, run_dir="runs/a")
    cells = plan_tuning(read_config(path))
    assert [str(cell.folder) for cell in cells] == [
        "runs/a/tuning/lift/pretrain/seed100",
        "runs/a/tuning/lift/dpmd/low/seed100",
        "runs/a/tuning/lift/dpmd/high/seed100",
        "runs/a/tuning/lift/best_of_n/low/seed100",
        "runs/a/tuning/lift/best_of_n/high/seed100",
    ]
    assert {"train.epochs=3", "seed=100"} < set(cells[0].words)
    assert {
        *CLONED["dpmd"], "stage.actor_lr=1e-3", "total_env_steps=60", "seed=100", "evaluation.seed=400000",
        "policy=runs/a/tuning/lift/pretrain/seed100", "run_dir=runs/a/tuning/lift/dpmd/high/seed100",
    } < set(cells[2].words)  # fmt: skip
    assert "total_env_steps=120" not in cells[2].words
    grid = Grid(Path("runs/a/tuning"), cells)
    assert [grid.source(cell) and grid.source(cell).cell for cell in cells] == [None, *[cells[0]] * 4]


def test_a_task_can_have_other_settings(tmp_path):
    there = {"inverted_pendulum": {"dpmd": {"a": ["stage.tau=0.1"], "b": ["stage.tau=0.2"]}}}
    path = write_tuned(tmp_path / "a.yaml", tuning={**TUNING, "tasks": there})
    names = [cell.method for cell in plan_tuning(read_config(path))]
    assert names == ["dpmd/a", "dpmd/b", "best_of_n/low", "best_of_n/high"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, "tuning.seeds=[1]: expected one or more, all different and none of seeds=[0, 1]"),
        ({"seeds": []}, "tuning.seeds=[]: expected one or more"),
        (
            {"methods": {"dpmd": {"a": [], "b": []}, "best_of_n": {"a": []}}},
            "inverted_pendulum are dpmd 2, best_of_n 1",
        ),
        ({"methods": {}}, "the settings of the methods in inverted_pendulum are none"),
        ({"methods": {"dpdm": {"a": []}}}, "tuning.methods.dpdm: expected one of frozen, dpmd, best_of_n"),
        ({"methods": {"dpmd": {"a/b": []}}}, "tuning.methods.dpmd.a/b: it names a folder"),
        ({"tasks": {"lift": {}}}, "tuning.tasks.lift: expected one of inverted_pendulum"),
        (
            {"methods": {"dpmd": {"a": ["stage.actor_rl=1"]}}},
            "inverted_pendulum dpmd/a seed 100: unknown key stage.act",
        ),
    ],
)
def test_a_mistake_in_a_tuning_is_told_before_anything_runs(tmp_path, capsys, change, message):
    path = write_tuned(tmp_path / "a.yaml", tuning={**TUNING, **change})
    assert main(["compare", "--tune", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_frozen_methods_and_those_without_settings_need_not_be_tuned_alike(tmp_path):
    methods = {"dpmd": {"a": [], "b": []}, "frozen": {"a": []}}
    assert read_config(write_tuned(tmp_path / "a.yaml", tuning={**TUNING, "methods": methods})).tuning is not None


def test_without_settings_there_is_nothing_to_tune(tmp_path, capsys):
    assert main(["compare", "--tune", str(write_tuned(tmp_path / "a.yaml", tuning=None))]) == 2
    assert "the comparison has no key tuning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, "tuned.yaml cannot be read: No such file"),
        ({"lift": {}}, "tasks.lift: expected one of inverted_pendulum"),
        ({"inverted_pendulum": {"dpdm": []}}, "tasks.inverted_pendulum.dpdm: expected one of"),
        ({"inverted_pendulum": {"dpmd": ["stage.actor_lr=7"]}}, "expected the words of one of its settings"),
        ({"inverted_pendulum": {}}, "tasks.inverted_pendulum.dpmd=None: expected the words of one of its settings"),
    ],
)
def test_a_choice_that_is_not_there_or_of_another_tuning(tmp_path, capsys, tasks, message):
    path = write_tuned(tmp_path / "a.yaml", tuned="tuned.yaml")
    if tasks is not None:
        (tmp_path / "tuned.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    assert main(["compare", str(path)]) == 2
    told = capsys.readouterr().err
    assert message in told and "run burnish compare FILE --tune" in told


def test_the_best_setting_of_each_method_and_task_is_chosen():
    """By the mean over the seeds; of equals the first."""
    scores = {
        ("lift", "a", "x"): (0.5, 0.1), ("lift", "a", "y"): (0.4, 0.4), ("lift", "b", "x"): (0.2, 0.2),
        ("lift", "b", "y"): (0.2, 0.2), ("can", "a", "x"): (0.3, 0.3), ("can", "a", "y"): (0.1, 0.1),
    }  # fmt: skip
    trials = [
        Trial(*key, words=[], measure="success_rate", scores={"100": one, "101": other})
        for key, (one, other) in scores.items()
    ]
    chosen = [trial[:3] for trial in chosen_among(trials) if trial.chosen]
    assert chosen == [("lift", "a", "y"), ("lift", "b", "x"), ("can", "a", "x")]


def test_the_help_tells_about_tuning(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    told = capsys.readouterr().out
    assert "--tune" in told and "tuning.seeds=[100]" in told and "tuned=null" in told


class HereRunner(InstantRunner):
    """Runs a cell at once, in this process."""

    def start(self, cell, words, log):
        self.started.append((str(cell), words))
        self.done.append((cell, main(words)))


@pytest.mark.slow
def test_a_tuning_its_choice_and_the_comparison_that_uses_it(tmp_path, monkeypatch, capsys):
    for seed in (0, 100):
        torch.manual_seed(seed)
        config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=8), denoising_steps=5)
        DiffusionPolicy(config, 4, 1, ["flat"]).save(tmp_path / f"p{seed}")
    runner = HereRunner()
    monkeypatch.setattr(compare_start, "make_runner", lambda *_: runner)
    path = write_tuned(tmp_path / "a.yaml", seeds=[0])
    assert main(["compare", "--tune", str(path)]) == 0
    assert [name for name, _ in runner.started] == [
        f"inverted_pendulum {method}/{setting} seed 100"
        for method in ("dpmd", "best_of_n")
        for setting in ("low", "high")
    ]
    assert main(["compare", "--tune", str(path)]) == 0
    assert len(runner.started) == 4  # finished ones stay
    tuning = tmp_path / "runs" / "tuning"
    trials = json.loads((tuning / "tuning.json").read_text())["trials"]
    for trial in trials:
        summary = json.loads(
            (tuning / "inverted_pendulum" / trial["method"] / trial["setting"] / "seed100" / "summary.json").read_text()
        )
        kind = "after_selected" if trial["method"] == "best_of_n" else "after_best_temperature"
        assert trial["scores"] == {"100": summary[kind]["return"]}
    chosen = {trial["method"]: trial["words"] for trial in trials if trial["chosen"]}
    assert yaml.safe_load((tuning / "tuned.yaml").read_text()) == {"tasks": {"inverted_pendulum": chosen}}
    assert "| dpmd | low | stage.actor_lr=1e-5 |" in (tuning / "tuning.md").read_text()

    capsys.readouterr()
    assert main(["compare", "--plan", str(path)]) == 0
    assert "# 4 cells more with --tune, 4 finished; its choice is not used" in capsys.readouterr().out
    write_tuned(path, seeds=[0], tuned="runs/tuning/tuned.yaml")
    assert set(chosen["dpmd"]) < set(cells_of(path)[1].words) and "total_env_steps=120" in cells_of(path)[1].words
    assert main(["compare", "--plan", "--tune", str(path)]) == 0
    assert capsys.readouterr().out.count("# finished") == 4  # the choice changes no cell of the tuning
    assert main(["compare", str(path)]) == 0
    report = (tmp_path / "runs" / "report.md").read_text()
    assert "## Tuning" in report and "| best_of_n | high | stage.critic_lr=1e-3 |" in report
    assert "inverted_pendulum: verdict" in report and "| frozen, tau = 0 |" in report
    figures = {figure.evaluation: figure for figure in reproduce.measured(cells_of(path)) if figure.method == "frozen"}
    assert list(figures) == [
        "before",
        "after",
        "after_best_temperature",
        *(f"temperature{t}" for t in ("1", "0.5", "0")),
    ]
    assert figures["temperature1"].mean == figures["after"].mean


def test_the_last_line_of_a_log(tmp_path):
    assert last_line(tmp_path / "none.log") == "it printed nothing"
    (tmp_path / "a.log").write_text("one\nburnish: error: two\n\n")
    assert last_line(tmp_path / "a.log") == "burnish: error: two"


def test_reproduce_says_what_agrees(tmp_path, capsys):
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    write(recipe / "compare.yaml", seeds=[0, 1], methods={"dpmd": METHODS["dpmd"]}, run_dir=str(tmp_path / "runs"))
    assert main(["compare", str(recipe / "compare.yaml")]) == 0
    assert main(["reproduce", str(recipe), "--commit"]) == 0
    assert main(["reproduce", str(recipe), "--commit", "seeds=[7]"]) == 2
    figures = json.loads((recipe / "figures.json").read_text())
    evaluations = ["before", "after", "after_selected", "after_best_temperature"]
    assert [figure["evaluation"] for figure in figures] == evaluations
    summaries = [json.loads((cell.folder / "summary.json").read_text()) for cell in cells_of(recipe / "compare.yaml")]
    assert figures[1]["mean"] == np.mean([summary["after"]["return"] for summary in summaries])
    capsys.readouterr()
    assert main(["reproduce", str(recipe), f"run_dir={tmp_path / 'runs'}"]) == 0
    assert "all figures agree" in capsys.readouterr().out
    figures[1]["mean"] *= 1.2
    (recipe / "figures.json").write_text(json.dumps(figures))
    assert main(["reproduce", str(recipe), f"run_dir={tmp_path / 'runs'}"]) == 1
    assert "differs by more than 15%" in capsys.readouterr().out
    (recipe / "figures.json").write_text("[]")
    assert main(["reproduce", str(recipe)]) == 2
    assert "figures.json has no figures" in capsys.readouterr().err
    assert main(["reproduce", "nonsense"]) == 2


def test_agreement_is_absolute_for_success_and_relative_for_returns(capsys):
    success = reproduce.Figure("lift", "dpmd", "after", "success_rate", 0.9, [0], 0.1)
    assert reproduce.judge([success], [success._replace(mean=0.801)]) == 0
    assert reproduce.judge([success], [success._replace(mean=0.799)]) == 1
    returns = reproduce.Figure("hopper", "dpmd", "after", "return", -1000.0, [0], 0.15)
    before = returns._replace(evaluation="before", mean=2.0)  # 15 % of the task's largest as well
    assert reproduce.judge([before, returns], [before._replace(mean=-147.0), returns._replace(mean=-1149.0)]) == 0
    assert reproduce.judge([before, returns], [before._replace(mean=-149.0), returns]) == 1
    assert reproduce.judge([before, returns], [before, returns._replace(mean=-1151.0)]) == 1
    assert reproduce.judge([returns], [returns._replace(seeds=[1])]) == 1
    capsys.readouterr()
    assert reproduce.judge([returns], [returns, returns._replace(method="new")]) == 0
    assert "hopper new after" in (told := capsys.readouterr().out) and "not committed, not compared" in told


def test_a_task_of_a_comparison_can_be_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsuite: gymnasium\nenv_id: InvertedPendulum-v5\nmax_episode_steps: 20\n")
    path = write(tmp_path / "a.yaml", seeds=[0], tasks={"pendulum": {"task": str(file)}})
    cells = cells_of(path)
    assert {cell.task for cell in cells} == {"pendulum"}
    assert all(f"task={file}" in cell.words and resolve(cell).task.name == "mine" for cell in cells)
