"""Strict parsing, and composition from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from burnish.compose import compose, config_groups, expand_sweep, group_options
from burnish.config import parse, to_dict
from burnish.errors import BurnishError


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
