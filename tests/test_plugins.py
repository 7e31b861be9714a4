"""Other people's code: names that they register, module:name, and what is said where it is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from burnish import plugins, registry
from burnish.commands.cli import main
from burnish.compare.config import read_config, stage_name
from burnish.compare.local_runner import burnish_program
from burnish.compare.plan import plan
from burnish.compare.results import installed_stage
from burnish.compose import compose, config_class, expand_sweep
from burnish.config import parse
from burnish.datasets.load import load
from burnish.envs import make_vector_env
from burnish.envs.task import TaskConfig, load_task, recorded_measure
from burnish.errors import BurnishError, NotInstalled
from burnish.finetune.stage import Stage, stage_class
from burnish.networks import Denoiser
from burnish.networks.denoiser import DenoiserKeys
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.load import load_policy

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
RWR = ROOT / "examples" / "reward_weighted_regression"
TINY = ["denoising_steps=3", "denoiser.hidden_dim=8", "denoiser.n_layers=1"]
EVALUATION = ["evaluation.episodes=2", "evaluation.n_envs=2", "evaluation.temperatures=[]"]

DENOISER = """
    from dataclasses import dataclass

    from torch import nn

    from burnish.config import key
    from burnish.networks import Denoiser, DenoiserKeys, Encoded
    from burnish.registry import register


    @dataclass(frozen=True)
    class LinearConfig(DenoiserKeys):
        bias: bool = key(True, "of the one layer")


    class Linear(Denoiser):
        Config = LinearConfig

        def __init__(self, config, *, features, horizon, action_dim, denoising_steps):
            super().__init__()
            self.layer = nn.Linear(action_dim, action_dim, bias=config.bias)

        def condition(self, features):
            return Encoded(features, features)

        def forward(self, x, k, encoded):
            return self.layer(x)


    register("denoiser", "linear", "linear_network:Linear")
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of theirs that can be imported from, here and by what is started here."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([before] if before else [])]))
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(plugins, "_imported", [])
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, module: str, code: str) -> None:
    (folder / f"{module}.py").write_text(textwrap.dedent(code))


def blocks(language: str) -> list[str]:
    """The page's blocks of code."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def write_line(theirs: Path) -> str:
    """The page's robot and its task -> the task's file."""
    (robot,) = (code for code in blocks("python") if "class Line" in code)
    write(theirs, "line_robot", robot)
    (task,) = blocks("yaml")
    Path("line.yaml").write_text(task)
    return "line.yaml"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command refuses them with, in one line."""
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("burnish: error: ")
    return lines[0].removeprefix("burnish: error: ")


# -- the registry ------------------------------------------------------------------------------------------------------


def test_what_is_registered_is_found_and_nothing_is_imported_before(theirs):
    write(theirs, "algorithm", "from burnish.finetune.baselines.frozen import Frozen as Mine")
    registry.register("stage", "mine", "algorithm:Mine")
    registry.register("stage", "mine", "algorithm:Mine")  # a second import does no harm
    assert "algorithm" not in sys.modules and registry.registered("stage") == ["mine"]
    assert stage_class("mine") is stage_class("algorithm:Mine") is stage_class("frozen")
    assert registry.address("stage", "mine") == "algorithm:Mine" and registry.address("stage", "dppo") == "dppo"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("stages", "a", "b:C"), r"did you mean stage\? expected one of stage, policy"),
        (("stage", "a", "b.C"), "expected module:name"),
        (("stage", "taken", "c:D"), "it is a:B already"),
    ],
)
def test_what_cannot_be_registered(theirs, given, message):
    registry.register("stage", "taken", "a:B")
    with pytest.raises(BurnishError, match=message):
        registry.register(*given)


def test_a_name_of_the_package_is_not_taken_from_it(theirs):
    registry.register("stage", "dppo", "a:B")
    with pytest.raises(BurnishError, match="stage=dppo: a plugin registered a:B by a name of Burnish's own"):
        stage_class("dppo")


@pytest.mark.parametrize(
    ("name", "code", "kind", "message"),
    [
        ("rwt", "", BurnishError, r"stage=rwt: did you mean rwr\? expected one of dppo, .*, rwr, or module:name"),
        ("dpdm", "", BurnishError, r"stage=dpdm: did you mean dpmd\?"),
        ("nobody:RWR", "", NotInstalled, "stage=nobody:RWR: there is no module nobody: install its package, or put"),
        ("nobody.rwr:RWR", "", NotInstalled, "there is no module nobody: install"),
        ("broken:A", "import nothing_of_it", NotInstalled, "no module nothing_of_it, which broken imports"),
        ("broken:A", "\n\n1 / 0", BurnishError, r"broken cannot be imported: ZeroDivisionError.*broken.py:3\)"),
        ("broken:A", "B = 1", BurnishError, "module broken has no A"),
        ("broken:A", "A = 1", BurnishError, "expected a subclass of burnish.finetune.stage.Stage"),
        ("broken:A", "from burnish.finetune.stage import Stage as A", BurnishError, "as a dataclass Config"),
    ],
)
def test_what_is_said_of_a_name_that_is_not_there(theirs, name, code, kind, message):
    registry.register("stage", "rwr", "reward_weighted_regression:RWR")
    write(theirs, "broken", code)
    with pytest.raises(kind, match=message) as caught:
        stage_class(name)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


# -- plugins -----------------------------------------------------------------------------------------------------------


def test_plugins_come_from_the_key_the_variable_and_entry_points(theirs, monkeypatch):
    for name in ("by_key", "by_variable", "by_package"):
        write(theirs, name, f"from burnish.registry import register\nregister('suite', '{name}', 'a:b')")
    points = (EntryPoint("mine", "by_package", plugins.GROUP),)
    monkeypatch.setattr(plugins, "_entry_points", lambda: points)
    monkeypatch.setenv(plugins.VARIABLE, " by_variable, ")
    assert compose("evaluate", ["plugins=[by_key]"])["plugins"] == ["by_key", "by_variable"]
    assert set(registry.registered("suite")) == {"by_key", "by_variable", "by_package"}
    assert set(plugins.imported_plugins()) == {"by_key", "by_variable"}


def test_the_group_of_entry_points_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: asked.append(group) or ())
    plugins._entry_points.cache_clear()
    plugins.import_plugins()
    plugins._entry_points.cache_clear()
    assert asked == ["burnish.plugins"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plugins=[nobody]"], "plugins=[nobody]: there is no module nobody: install its package"),
        (["plugins=nobody"], "plugins=nobody: expected a list of modules, as plugins=[my_package.robots]"),
        (["plugins=[my/file.py]"], "plugins=[my/file.py]: expected names of modules"),
        (["plugins=[broken]"], "plugins=[broken]: module broken cannot be imported: OSError: no robot here ("),
    ],
)
def test_a_missing_plugin_is_one_clear_error(theirs, capsys, words, message):
    write(theirs, "broken", "raise OSError('no robot\\nhere')")
    assert said(capsys, "finetune", "policy=x", *words).startswith(message)


@pytest.mark.parametrize("command", ["pretrain", "finetune", "scratch", "evaluate", "headroom", "collect", "behaviour"])
def test_every_command_has_the_key(command):
    assert parse(plugins.PluginsConfig, {"plugins": ["a.b"]}).plugins == ["a.b"]
    assert issubclass(config_class(command), plugins.PluginsConfig)


# -- algorithms --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rwr(theirs: Path) -> str:
    shutil.copy(RWR / "reward_weighted_regression.py", theirs)
    return "reward_weighted_regression"


def test_an_algorithm_of_one_s_own_has_its_keys(rwr, capsys):
    config = compose("finetune", ["policy=x", f"stage={rwr}:RWR", "stage.beta=2"])
    assert config["stage"]["beta"] == 2 and "clip_coef" not in config["stage"]
    assert config["run_dir"] == "runs/reward_weighted_regression-RWR-lift-seed0"
    assert parse(config_class("finetune"), config).stage.beta == 2.0
    short = compose("finetune", ["policy=x", f"plugins=[{rwr}]", "stage=rwr", "stage.beta=2"])
    assert short["stage"] == {**config["stage"], "name": "rwr"} and short["plugins"] == [rwr]
    Path("mine.yaml").write_text(f"name: {rwr}:RWR\nbeta: 2\n")
    assert compose("finetune", ["policy=x", "stage=mine.yaml"])["stage"] == config["stage"]
    assert expand_sweep("finetune", [f"stage={rwr}:RWR,dppo"]) == [[f"stage={rwr}:RWR"], ["stage=dppo"]]
    assert main(["finetune", f"stage={rwr}:RWR", "stage.beta=2", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"stage\.beta=2 +temperature of the weights", shown) and "stage.clip_coef" not in shown
    assert re.search(r"ppo_scratch,\s+residual,\s+rwr,\s+sac", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=reward_weighted_regression:RWR", "stage.bete=1"], "unknown key stage.bete: did you mean stage.beta?"),
        (["stage=reward_weighted_regression:RWR", "stage.beta=0"], "stage.beta=0.0: expected more than 0"),
        (["plugins=[reward_weighted_regression]", "stage=rwt"], "stage=rwt: did you mean rwr? expected one of"),
        (["stage=rwr"], "stage=rwr: expected one of best_of_n, "),
        (["stage=nobody:RWR"], "stage=nobody:RWR: there is no module nobody"),
    ],
)
def test_what_is_wrong_with_an_algorithm_of_one_s_own(rwr, capsys, words, message):
    assert said(capsys, "finetune", "policy=x", *words).startswith(message)


# -- networks and policies ---------------------------------------------------------------------------------------------


def test_a_network_of_one_s_own_has_its_keys(theirs, capsys):
    write(theirs, "linear_network", DENOISER)
    name = "policy.denoiser.name=linear_network:Linear"
    expected = {"name": "linear_network:Linear", "bias": False}
    assert compose("pretrain", ["policy.denoiser.bias=false", name])["policy"]["denoiser"] == expected
    assert compose("scratch", [name.replace("policy", "network")])["network"]["denoiser"] == {**expected, "bias": True}
    parsed = parse(config_class("pretrain"), compose("pretrain", [name, "policy=flow"]))
    assert type(parsed.policy.denoiser).__name__ == "LinearConfig" and parsed.policy.kind == "flow"
    assert said(capsys, "pretrain", name, "policy.denoiser.hidden_dim=3").startswith(
        "unknown key policy.denoiser.hidden_dim: did you mean policy.denoiser."
    )
    assert said(capsys, "pretrain", "policy.denoiser.name=unit").startswith("denoiser.name=unit: did you mean unet?")
    assert compose("pretrain", ["policy.denoiser.name=unet"])["policy"]["denoiser"]["channels"] == [64, 128, 256]


def test_its_policy_names_the_class_and_loads_without_the_plugin(theirs, tmp_path):
    write(theirs, "linear_network", DENOISER)
    plugins.import_plugins(["linear_network"])
    config = PolicyConfig(parse(DenoiserKeys, {"name": "linear"}), horizon=2, n_action_steps=2, denoising_steps=3)
    policy = DiffusionPolicy(config, 2, 1, ["flat"]).eval()
    assert isinstance(policy.denoiser, Denoiser)
    policy.save(tmp_path / "policy")
    described = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert described["config"]["denoiser"] == {"name": "linear_network:Linear", "bias": True}
    registry._registered["denoiser"].clear()
    loaded, noise = load_policy(tmp_path / "policy"), policy.draw_noise(3)
    obs = torch.randn(3, 1, 2)
    assert torch.equal(loaded.act(obs, noise=noise), policy.act(obs, noise=noise))
    del sys.modules["linear_network"]
    (theirs / "linear_network.py").unlink()
    with pytest.raises(BurnishError, match=r"policy.json: denoiser.name=linear_network:Linear: there is no module"):
        load_policy(tmp_path / "policy")


def test_a_policy_of_one_s_own(theirs, tmp_path):
    code = """
        from dataclasses import dataclass, field

        from burnish.config import key
        from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig


        @dataclass(frozen=True)
        class ShyConfig(PolicyConfig):
            kind: str = field(kw_only=True)
            shyness: float = key(0.5, "factor on its actions")


        class Shy(DiffusionPolicy):
            Config = ShyConfig

            def within_bounds(self, x):
                return self.config.shyness * super().within_bounds(x)
    """
    write(theirs, "shy_policy", code)
    config = compose("pretrain", ["policy=shy_policy:Shy", "policy.shyness=0.25"])["policy"]
    assert config["kind"] == "shy_policy:Shy" and config["shyness"] == 0.25 and config["denoising_steps"] == 20
    parsed = parse(config_class("pretrain"), compose("pretrain", ["policy=shy_policy:Shy"])).policy
    policy = registry.find("policy", parsed.kind, {}, "kind")(parsed, 2, 1, ["flat"]).eval()
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is type(policy) and loaded.config == policy.config
    assert not type("Only", (Stage,), {"kinds": ("diffusion",)}).trains("flow")  # of the package's own by name alone
    assert stage_class("dpmd").trains("shy_policy:Shy") and not stage_class("sac").trains("shy_policy:Shy")
    with pytest.raises(BurnishError, match="holds a shy_policy:Shy policy: expected a DiffusionPolicy"):
        DiffusionPolicy.load(tmp_path / "policy")


# -- simulators --------------------------------------------------------------------------------------------------------


def test_a_suite_of_one_s_own_in_this_process_and_in_workers(theirs):
    task = load_task(write_line(theirs))
    found = {}
    for backend in ("sync", "workers"):
        envs = make_vector_env(task, n_envs=3, n_obs_steps=1, n_action_steps=2, seed=0, backend=backend, n_workers=2)
        first = envs.reset([5, 6, 7])
        step = envs.step(np.ones((3, 2, 1), np.float32))
        np.testing.assert_allclose(step.final_obs, first + 0.2, atol=1e-6)  # two steps at a speed of 0.1
        found[backend] = [first, *step, envs.state_dict()]
        envs.close()
    assert str(found["sync"]) == str(found["workers"])


@pytest.mark.parametrize("env_id", ["TheirPendulum-v0", "their_robots:TheirPendulum-v0"])
def test_gymnasium_environments_of_a_plugin_are_known_in_workers(theirs, env_id):
    code = """
        import gymnasium

        entry_point = "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv"
        if "TheirPendulum-v0" not in gymnasium.registry:
            gymnasium.register("TheirPendulum-v0", entry_point=entry_point)
    """
    import gymnasium

    write(theirs, "their_robots", code)
    task = TaskConfig("theirs", "gymnasium", env_id, 10)
    if ":" not in env_id:
        plugins.import_plugins(["their_robots"])
    try:
        for backend in ("sync", "workers"):
            envs = make_vector_env(task, n_envs=2, n_obs_steps=1, n_action_steps=1, seed=0, backend=backend)
            assert envs.reset().shape == (2, 1, 4)
            envs.close()
    finally:
        gymnasium.registry.pop("TheirPendulum-v0", None)
    with pytest.raises(BurnishError, match=r"nobody:Foo-v0 .*cannot be made: No module named 'nobody'"):
        make_vector_env(
            TaskConfig("t", "gymnasium", "nobody:Foo-v0", 10), n_envs=1, n_obs_steps=1, n_action_steps=1, seed=0
        )


def test_what_a_suite_of_one_s_own_is_judged_by(theirs):
    own = TaskConfig("t", "mine:make", "x", 10)
    assert (
        own.measure == "return" and TaskConfig("t", "mine:make", "x", 10, judged_by="success_rate").measure != "return"
    )
    assert TaskConfig("t", "robosuite", "Lift", 10, judged_by="return").measure == "return"
    assert recorded_measure({"suite": "mine:make", "judged_by": "success_rate"}) == "success_rate"
    with pytest.raises(BurnishError, match=r"task.suite=robosuit: did you mean robosuite\? expected one of gymnasium"):
        TaskConfig("t", "robosuit", "x", 10)


def test_tasks_tells_whether_a_suite_of_one_s_own_runs(theirs, capsys):
    file = write_line(theirs)
    assert main(["tasks", file, "--check"]) == 0
    assert re.search(r"^line +line_robot:make +line +40 .* yes$", capsys.readouterr().out, re.M)
    Path(file).write_text(Path(file).read_text().replace("line_robot", "nobody"))
    assert main(["tasks", file]) == 1
    assert "no: task.suite=nobody:make: there is no module nobody" in capsys.readouterr().out


# -- behaviours --------------------------------------------------------------------------------------------------------


def test_a_behaviour_of_one_s_own_collects_in_workers(theirs, capsys):
    file = write_line(theirs)
    words = ["data", "collect", f"task={file}", "episodes=3"]
    assert main([*words, "behaviour=line_robot:expert", "out=a.hdf5", "n_workers=2"]) == 0
    write(theirs, "naming", "from burnish.registry import register\nregister('behaviour', 'mine', 'line_robot:expert')")
    assert main([*words, "plugins=[naming]", "behaviour=mine", "out=b.hdf5", "n_workers=2"]) == 0
    first, second = load("a.hdf5").episodes, load("b.hdf5").episodes
    assert len(first) == 3 and all(episode.rewards[-1] == 1 for episode in first)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, second))
    capsys.readouterr()
    said_of = said(capsys, *words, "plugins=[naming]", "behaviour=mime", "out=c.hdf5", "n_workers=1")
    assert said_of.startswith("behaviour=mime: did you mean mine? expected one of expert, sac, mine, or module:name")


# -- runs --------------------------------------------------------------------------------------------------------------


def burnish(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*burnish_program(), *words], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def run(rwr, theirs: Path) -> Path:
    """Of an algorithm and a robot that only a plugin knows."""
    write_line(theirs)
    code = f"import {rwr}\nfrom burnish.registry import register\nregister('suite', 'line', 'line_robot:make')"
    write(theirs, "line_plugin", code)
    task = yaml.safe_load(Path("line.yaml").read_text())
    Path("line.yaml").write_text(yaml.safe_dump(task | {"suite": "line"}))
    network = [f"network.{key}" for key in TINY]
    words = [*network, *EVALUATION, "n_envs=2", "n_workers=2", "backend=workers", "stage.n_steps=5", "run_dir=run"]
    words += ["plugins=[line_plugin]", "task=line.yaml", "stage=rwr", "total_env_steps=20", "checkpoint_every=1"]
    assert main(["scratch", *words]) == 0
    return Path("run")


@pytest.mark.slow
def test_a_run_keeps_its_plugins_for_resume_and_evaluation(run, theirs):
    assert yaml.safe_load((run / "config.yaml").read_text())["plugins"] == ["line_plugin"]
    description = json.loads((run / "checkpoints" / "latest" / "policy.json").read_text())
    assert description["plugins"] == ["line_plugin"] and description["trained_in"]["suite"] == "line"
    resumed = burnish("finetune", "resume=run", "total_env_steps=40")
    assert resumed.returncode == 0, resumed.stderr
    evaluated = burnish("evaluate", "policy=run", "episodes=2", "n_envs=2", "backend=workers", "n_workers=2")
    assert evaluated.returncode == 0 and "success_rate" in evaluated.stdout, evaluated.stderr
    (theirs / "line_plugin.py").unlink()
    resumed = burnish("finetune", "resume=run", "total_env_steps=60")
    assert resumed.returncode == 2 and "plugins=[line_plugin]: there is no module line_plugin" in resumed.stderr
    evaluated = burnish("evaluate", "policy=run", "episodes=2")
    assert evaluated.returncode == 2 and "made with a plugin that is not here" in evaluated.stderr
    assert "task.suite=line: expected one of gymnasium, robosuite" in evaluated.stderr.splitlines()[-1]


def comparison(path: str = "compare.yaml", **content: object) -> Path:
    settings = [*(f"network.{key}" for key in TINY), "n_envs=2", "evaluation.episodes=2", "evaluation.n_envs=2"]
    full = {
        "plugins": ["line_plugin"],
        "run_dir": "compared",
        "tasks": {"line": {"task": "line.yaml"}},
        "methods": {"rwr": ["stage=rwr", "stage.n_steps=5"]},
        "settings": [*settings, "evaluation.temperatures=[]"],
        "seeds": [0],
        "total_env_steps": 20,
        "memory_gb": 8,
    }
    Path(path).write_text(yaml.safe_dump(full | content))
    return Path(path)


@pytest.mark.slow
def test_a_comparison_imports_plugins_and_reports_without_them(run, theirs):
    file = comparison()
    done = burnish("compare", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with_plugin = Path("compared/report.md").read_text()
    assert "not installed" not in with_plugin
    for name in ("line_plugin", "reward_weighted_regression", "line_robot"):
        (theirs / f"{name}.py").unlink()
    refused = burnish("compare", str(file))
    assert refused.returncode == 2 and "plugins=[line_plugin]: there is no module" in refused.stderr.splitlines()[-1]
    done = burnish("compare", str(file), "--report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cells are reported as found" in done.stderr
    report = Path("compared/report.md").read_text()
    assert "rwr: stage=rwr is not installed here; taken for one that trains the policy" in report
    table = "last and best checkpoints"
    assert report.split(table)[1].split("\n## ")[0] == with_plugin.split(table)[1].split("\n## ")[0]


def test_the_words_of_cells_have_the_plugins_of_the_file_and_of_the_variable(rwr, monkeypatch, theirs):
    write_line(theirs)
    write(theirs, "line_plugin", f"import {rwr}")
    write(theirs, "other", "")
    monkeypatch.setenv(plugins.VARIABLE, "other")
    cells = plan(read_config(comparison(tasks={"hopper": {}, "lift": {"pretrain": []}}, settings=[])))
    assert len(cells) == 3 and all("plugins=[line_plugin,other]" in cell.words for cell in cells)
    monkeypatch.delenv(plugins.VARIABLE)
    cells = plan(read_config(comparison(plugins=[], methods={"dppo": ["stage=dppo_scratch"]})))
    assert not any("plugins" in word for cell in cells for word in cell.words)


def test_what_a_comparison_asks_of_a_stage_of_one_s_own(rwr, theirs):
    write(theirs, "line_plugin", f"import {rwr}")
    write(theirs, "still", "from burnish.finetune.baselines.frozen import Frozen")
    Path("mine.yaml").write_text("name: still:Frozen\n")
    assert [stage_name(option) for option in ("dpmd_gym", "mine.yaml", "still:Frozen", "rwr")] == [
        "dpmd", "still:Frozen", "still:Frozen", "rwr",
    ]  # fmt: skip
    methods = {"rwr": ["stage=rwr"], "still": ["stage=mine.yaml"], "nobody": ["stage=nobody:A"]}
    config = read_config(comparison(methods=methods))
    assert [config.learns(method) for method in methods] == [True, False, True]


def test_a_run_of_a_stage_that_is_not_installed_is_read(rwr):
    assert installed_stage("nobody:RWR") is None and installed_stage("rwr") is None
    assert installed_stage(f"{rwr}:RWR").learns


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_s_commands_run(theirs):
    """Shortened."""
    write_line(theirs)
    short = {
        "tasks": [],
        "data": ["episodes=4"],
        "pretrain": ["train.updates=20", *EVALUATION],
        "finetune": ["n_envs=2", "stage.n_steps=5", "total_env_steps=80", *EVALUATION],
    }
    commands = [line.split()[1:] for line in PAGE.splitlines() if line.startswith("    burnish ")]
    assert [words[0] for words in commands] == list(short)
    for words in commands:
        done = burnish(*words, *short[words[0]])
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
    assert load_policy("runs/pretrain-line-seed0").task == "line"


def test_the_page_s_registration_is_one(theirs):
    (code,) = (code for code in blocks("python") if "class Line" not in code)
    exec(code, {})
    assert registry.address("stage", "rwr") == "my_package.rwr:RWR"
    assert set(re.findall(r"denoiser, policy, behaviour, suite", code)) and set(registry.KINDS) == {
        "stage", "denoiser", "policy", "behaviour", "suite",
    }  # fmt: skip
