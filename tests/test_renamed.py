"""Runs of older versions stay valid: their config.yaml is read with today's keys, and their cells stay finished.

`data/format1/configs` has the config.yaml of short runs (short_runs.py) that commit a90f0bf made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from short_runs import RUNS

from burnish import renamed
from burnish.commands.configure import configure
from burnish.commands.table import COMMANDS
from burnish.compare.grid import is_current
from burnish.compare.plan import PlannedRun
from burnish.compose import compose, config_class
from burnish.config import parse, to_dict
from burnish.errors import BurnishError
from burnish.finetune.stage import STAGES
from burnish.renamed import ADDED, FORMAT, RENAMED, Added, Renamed, with_todays_keys
from burnish.runs.folder import Run, load_config

FORMAT_1 = Path(__file__).parent / "data" / "format1" / "configs"
CRITIC = ["stage.target_candidates=2"]
CHANGED = {
    "dpmd": [*CRITIC, "stage.train_on=all", "stage.draw_at=next"],
    "best_of_n": CRITIC,
    "sdac": [*CRITIC, "stage.bc_coef=10.0", "stage.draw_at=next"],
}
"""Words for defaults that were others."""
OLD_RUNS = sorted(path.name for path in FORMAT_1.iterdir())


def flat(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def test_there_is_one_of_every_stage() -> None:
    found = {load_config(FORMAT_1 / name).get("stage", {}).get("name") for name in OLD_RUNS}
    later = {"frozen", "idql", "qsm", "qvpo", "dacer", "dipo", "dql", "calql", "rlpd", "qc"}
    later |= {"dsrl", "residual", "ogpo"}
    assert found == {*STAGES, None} - later  # there were none of them


def has(key: str, run: dict[str, Any]) -> bool:
    """Whether runs of its command have the key; those at the top are fine-tuning's."""
    return "." in key or "stage" in run


@pytest.mark.parametrize("name", OLD_RUNS)
def test_an_old_run_is_parsed_and_nothing_that_had_an_effect_is_lost(name: str) -> None:
    old = yaml.safe_load((FORMAT_1 / name / "config.yaml").read_text())
    config = parse(config_class(RUNS[name][0]), load_config(FORMAT_1 / name))
    stages = (None, old.get("stage", {}).get("name"))
    dropped = tuple(key for _, stage, key, _ in RENAMED if stage in stages)
    kept = {key: value for key, value in flat(old) if not f"{key}.".startswith(tuple(f"{key}." for key in dropped))}
    found = dict(flat(to_dict(config)))
    assert found.items() >= kept.items()
    assert all(found[key] == value for _, stage, key, value in ADDED if stage in stages and has(key, old))
    assert "train.eval_every" not in found or found["train.eval_every"] == 5000  # counted epochs


@pytest.mark.parametrize("name", OLD_RUNS)
def test_the_cell_of_an_old_run_is_current(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_1 / name, folder)
    command, *words = RUNS[name]
    old = load_config(folder)
    stage = old.get("stage", {}).get("name")
    words += [
        f"{key}={'null' if value is None else value}"
        for _, of, key, value in ADDED
        if of in (None, stage) and has(key, old)
    ]
    words += CHANGED.get(stage, [])

    def cell(*more: str) -> PlannedRun:
        return PlannedRun("hopper", "method", 3, command, folder, (*words, "seed=3", f"run_dir={folder}", *more))

    assert is_current(cell())
    assert not is_current(cell("evaluation.seed=1"))


def test_an_old_run_is_resumed_and_then_written_in_todays_format(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_1 / "best-of-n-hopper", folder)
    finetune = next(command for command in COMMANDS if command.name == "finetune")
    config = finetune.parse(configure(finetune, [f"resume={folder}", "total_env_steps=640"]))
    Run.open(config).close()
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["format"] == FORMAT and written["total_env_steps"] == 640
    assert "draws" not in written["stage"] and written["stage"]["critic_lr"] == 1e-3
    assert load_config(folder) == {key: value for key, value in written.items() if key != "format"}


def test_a_key_is_renamed_in_runs_before_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (Renamed(3, None, "batch", "train.batch_size"), Renamed(4, "dppo", "stage.lr", "stage.actor_lr"))
    monkeypatch.setattr(renamed, "RENAMED", table)
    monkeypatch.setattr(renamed, "ADDED", ())
    monkeypatch.setattr(renamed, "FORMAT", 4)
    old = {"format": 2, "batch": 8, "stage": {"name": "dppo", "lr": 0.1}}
    assert with_todays_keys(old) == {"train": {"batch_size": 8}, "stage": {"name": "dppo", "actor_lr": 0.1}}
    assert old["stage"] == {"name": "dppo", "lr": 0.1}
    assert with_todays_keys({"format": 3, "batch": 8, "stage": {"name": "sac", "lr": 0.1}}) == {
        "batch": 8,
        "stage": {"name": "sac", "lr": 0.1},
    }


def test_a_key_that_came_later_has_what_older_runs_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "ADDED", (Added(3, "dppo", "stage.form", "old"),))
    assert with_todays_keys({"stage": {"name": "dppo"}}) == {"stage": {"name": "dppo", "form": "old"}}
    assert with_todays_keys({"format": 3, "stage": {"name": "dppo"}}) == {"stage": {"name": "dppo"}}
    assert with_todays_keys({"stage": {"name": "sac"}}) == {"stage": {"name": "sac"}}
    assert with_todays_keys({"format": 2, "stage": {"name": "dppo", "form": "x"}})["stage"]["form"] == "x"
    assert with_todays_keys({"train": {}}) == {"train": {}}


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"format: {FORMAT + 1}\nseed: 0\n")
    with pytest.raises(BurnishError, match=rf"config.yaml: format={FORMAT + 1}: this version of Burnish reads formats"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stage.old_policy_every=4", "stage.old_policy_every has no effect with stage=best_of_n: leave it out"),
        ("stage.rsm.kl_target=1", "stage.rsm.kl_target has no effect with stage=best_of_n: leave it out"),
    ],
)
def test_a_word_that_is_gone_is_told(word: str, message: str) -> None:
    with pytest.raises(BurnishError, match=message):
        compose("finetune", ["policy=x", "stage=best_of_n", word])
    compose("finetune", ["policy=x", "stage=dpmd", word])
