"""Strict parsing, and composition from the command line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from typing import Any, Literal, get_type_hints

import pytest
import yaml

from burnish.compose import (
    CONFIG_MODULE,
    CONFIGS,
    compose,
    config_class,
    config_groups,
    config_text,
    expand_sweep,
    group_options,
)
from burnish.config import Checked, WrongValue, about, completed, key, parse, section_class, to_dict
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.finetune.stage import STAGES, StageConfig
from burnish.policies.base import POLICIES, policy_class


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    steps: int = 3
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be positive")


def test_parse_converts_and_round_trips() -> None:
    given = {"name": "x", "inner": {"rate": 2, "pair": [3, 4]}, "steps": 1e6, "limit": 7, "extra": {"k": [1]}}
    parsed = parse(Outer, given)
    assert parsed == Outer("x", Inner(2.0, [1, 2], (3, 4.0)), 1_000_000, False, "a", 7, {"k": [1]})
    assert type(parsed.inner.rate) is float and type(parsed.steps) is int and type(parsed.inner.pair) is tuple
    assert parse(Outer, yaml.safe_load(yaml.safe_dump(to_dict(parsed)))) == parsed


def test_a_power_of_ten_is_a_number_where_one_is_expected() -> None:
    given = yaml.safe_load("{name: 1e6, steps: 1e6, inner: {rate: 5e-4}}")
    assert parse(Outer, given) == Outer("1e6", Inner(5e-4), 1_000_000)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "x", "inner": {"rte": 1}}, ["inner.rte", "inner.rate"]),
        ({"name": "x", "stepz": 1}, ["stepz", "steps"]),
        ({}, ["name is missing"]),
        ({"name": "???"}, ["name is missing"]),
        ({"name": 3}, ["name=3", "text"]),
        ({"name": "x", "steps": "many"}, ["steps=many", "whole number"]),
        ({"name": "x", "steps": 1.5}, ["steps=1.5", "whole number"]),
        ({"name": "x", "steps": True}, ["steps=true", "whole number"]),
        ({"name": "x", "flag": 1}, ["flag=1", "true or false"]),
        ({"name": "x", "mode": "c"}, ["mode=c", "a, b"]),
        ({"name": "x", "limit": "no"}, ["limit=no"]),
        ({"name": "x", "inner": {"sizes": [1, "b"]}}, ["inner.sizes[1]=b"]),
        ({"name": "x", "inner": {"pair": [1]}}, ["inner.pair", "2 values"]),
        ({"name": "x", "inner": 3}, ["inner=3", "keys and values"]),
        ({"name": "x", "steps": 0}, ["steps must be positive"]),
    ],
)
def test_parse_names_what_is_wrong(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BurnishError) as caught:
        parse(Outer, given)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_bool_is_not_a_literal_number() -> None:
    @dataclass
    class Choice:
        n: Literal[1, 2] = 1

    Choice.__annotations__["n"] = Literal[1, 2]
    with pytest.raises(BurnishError, match="n=true"):
        parse(Choice, {"n": True})


@dataclass(frozen=True)
class Rates(Checked):
    steps: int = key(3, "how many", least=1)
    discount: float = key(0.9, "of each step", above=0, most=1)
    share: float = key(0.5, least=0, below=1)
    quantile: float = key(0.5, least=0, most=1)
    limit: float | None = key(None, above=0)
    norm: float = key(1.0, above=0, most=math.inf)
    start: float = key(-1.0, "anything")
    weight: float | Literal["auto"] = key("auto", least=0)
    sizes: list[int] = key([64, 64], least=1)
    form: str = key("round", options=("round", "square"))

    def check(self) -> None:
        if self.share > self.quantile:
            raise WrongValue(f"share={self.share}: more than quantile={self.quantile}")


@dataclass(frozen=True)
class Slower(Rates):
    discount: float = 0.5


@dataclass(frozen=True)
class Both(Checked):
    rates: Rates = key(factory=lambda: Rates(steps=7))


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"discount": 0.0}, "discount=0.0: expected more than 0 and at most 1"),
        ({"discount": NAN}, "discount=nan: expected more than 0 and at most 1"),
        ({"share": 1.0}, "share=1.0: expected at least 0 and less than 1"),
        ({"quantile": 1.5}, "quantile=1.5: expected 0 to 1"),
        ({"limit": INFINITE}, "limit=inf: expected more than 0, or null"),
        ({"norm": NAN}, "norm=nan: expected more than 0"),
        ({"start": -INFINITE}, "start=-inf: expected a finite number"),
        ({"weight": -1.0}, "weight=-1.0: expected at least 0, or auto"),
        ({"sizes": [64, 0]}, "sizes=[64, 0]: expected at least 1 each"),
        ({"form": "oval"}, "form=oval: expected one of round, square"),
        ({"share": 0.9}, "share=0.9: more than quantile=0.5"),
    ],
)
def test_ranges_are_checked_whoever_makes_the_dataclass(given: dict[str, Any], message: str) -> None:
    for cls in (Rates, Slower):
        with pytest.raises(WrongValue) as caught:
            cls(**given)
        assert str(caught.value) == message
    with pytest.raises(WrongValue):
        replace(Rates(), **given)
    with pytest.raises(BurnishError) as refused:
        parse(Both, {"rates": given}, "stage")
    assert str(refused.value) == f"stage.rates.{message}"


def test_what_a_range_admits() -> None:
    assert Rates(norm=INFINITE, weight=0.0, discount=1, quantile=1, share=0).norm == INFINITE
    assert Rates().sizes == [64, 64] and Rates().sizes is not Rates().sizes
    assert Slower().discount == 0.5 and about(Slower, "discount") == about(Rates, "discount")
    assert about(Rates, "steps").doc == "how many"


@pytest.mark.parametrize(
    ("stage", "setting"), [("dppo", "clip_coef=nan"), ("dpmd", "rsm.kl_target=inf"), ("ppo", "learning_rate=nan")]
)
def test_no_stage_takes_what_is_no_number(stage: str, setting: str) -> None:
    with pytest.raises(BurnishError, match=f"stage.{setting}: expected more than 0"):
        parse(config_class("finetune"), compose("finetune", ["policy=x", f"stage={stage}", f"stage.{setting}"]))


def test_completed_fills_in_the_defaults_of_the_section_that_is_meant() -> None:
    assert completed(Both, {})["rates"] == to_dict(Rates(steps=7))
    assert completed(Both, {"rates": {"share": 0.1, "stray": 1}})["rates"] == {
        **to_dict(Rates(steps=7, share=0.1)),
        "stray": 1,
    }
    assert completed(StageConfig, {"name": "sdac"})["rsm"]["kl_target"] == 2.0


def yaml_files() -> list[str]:
    """Of all commands, and of all options of all groups."""
    folder = resources.files(CONFIG_MODULE)
    groups = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    return sorted([*CONFIGS, *(f"{group}/{option}" for group in groups for option in group_options(group))])


def dataclass_of(name: str, given: dict[str, Any]) -> type:
    group = name.split("/", maxsplit=1)[0]
    if group in ("policy", "network"):
        return policy_class(given["kind"]).Config
    return {"stage": StageConfig, "task": TaskConfig}[group] if "/" in name else config_class(name)


def repeated(given: dict[str, Any], defaults: dict[str, Any], where: str = "") -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            yield from repeated(value, defaults[name], f"{where}{name}.")
        elif name in defaults and value == defaults[name]:
            yield f"{where}{name}"


@pytest.mark.parametrize("name", yaml_files())
def test_no_key_of_a_yaml_file_repeats_a_default(name: str) -> None:
    """`name` and `kind` say which dataclass it is."""
    given = yaml.safe_load(config_text(name))
    given.pop("defaults", None)
    cls = dataclass_of(name, given)
    chosen = {key: given.pop(key) for key in ("name", "kind") if key in given}
    if "/" not in name:
        chosen["stage"] = {"name": "dppo"}
    assert list(repeated(given, completed(cls, chosen))) == []
    assert not set(given) - set(completed(cls, chosen))


def all_dataclasses() -> Iterator[type]:
    yield from map(config_class, CONFIGS)
    yield from (StageConfig.choose({"name": name}) for name in STAGES)
    yield from (policy_class(kind).Config for kind in POLICIES)


@pytest.mark.parametrize("cls", list(all_dataclasses()), ids=lambda cls: cls.__name__)
def test_every_key_says_what_it_means(cls: type) -> None:
    hints = get_type_hints(cls)
    for each in fields(cls):
        if each.name in ("name", "kind") or section_class(hints[each.name], {}, "") is not None:
            continue
        assert about(cls, each.name).doc, each.name


def test_compose_takes_groups_values_and_unquoted_paths() -> None:
    config = compose(
        "pretrain",
        ["task=hopper", "policy=unet", "train.epochs=3", "dataset=shipped:lift", "seed=4", "wandb=offline"],
    )
    assert config["task"]["env_id"] == "Hopper-v5"
    assert config["policy"]["denoiser"]["name"] == "unet"
    assert config["train"]["epochs"] == 3
    assert config["dataset"] == "shipped:lift"
    assert config["run_dir"] == "runs/pretrain-hopper-seed4"


def test_compose_leaves_paths_alone_but_for_interpolation() -> None:
    path = "runs/a (b)=3,c/${task.name}/best"
    config = compose("finetune", [f"policy={path}", "task=can"])
    assert config["policy"] == "runs/a (b)=3,c/can/best"
    assert compose("evaluate", [])["policy"] == "???"
    assert compose("pretrain", ["dataset=null"])["dataset"] is None


def test_compose_lets_the_simulators_own_arguments_be_new() -> None:
    config = compose("pretrain", ["task.env_kwargs.reward_shaping=true", "+task.env_kwargs.x=1"])
    assert config["task"]["env_kwargs"] == {"reward_shaping": True, "x": 1}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=lft"], ["task=lft", "lift", "hopper"]),
        (["policy=transformer"], ["mlp, unet"]),
        (["trian.epochs=3"], ["trian.epochs", "train.epochs"]),
        (["epochs=3"], ["epochs", "train.epochs"]),
        (["+nonsense=3"], ["nonsense"]),
        (["outt=3"], ["outt"]),
        (["out=3"], ["out"]),
        (["seed"], ["seed", "key=value"]),
        (["seed=1,2"], ["seed=1,2", "--multirun"]),
        (["task=lift,can"], ["--multirun"]),
        (["filter_key=a(b"], ["filter_key=a(b", "quotes"]),
        (["seed=${sed}"], ["sed"]),
    ],
)
def test_compose_names_what_is_wrong_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BurnishError) as caught:
        compose("pretrain", overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_expand_sweep_gives_all_combinations_in_order() -> None:
    jobs = expand_sweep("finetune", ["seed=0,1", "stage.clip_coef=0.1", "n_envs=range(2,6,2)", "policy=a/b,c:d"])
    assert len(jobs) == 8
    assert jobs[0] == ["seed=0", "stage.clip_coef=0.1", "n_envs=2", "policy=a/b"]
    assert jobs[1] == ["seed=0", "stage.clip_coef=0.1", "n_envs=2", "policy=c:d"]
    assert jobs[-1] == ["seed=1", "stage.clip_coef=0.1", "n_envs=4", "policy=c:d"]
    assert expand_sweep("pretrain", ["task=lift,can", "filter_key='a,b'"]) == [
        ["task=lift", "filter_key='a,b'"],
        ["task=can", "filter_key='a,b'"],
    ]
    with pytest.raises(BurnishError, match="range"):
        expand_sweep("pretrain", ["seed=interval(0,1)"])


def test_groups_are_the_files() -> None:
    assert config_groups("pretrain")["task"][0] == "lift"
    assert set(config_groups("finetune")) == {"task", "stage"}
    assert {"lift", "can", "square", "hopper"} <= set(group_options("task"))
