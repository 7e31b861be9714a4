"""docs/checkpoint.md says exactly what a checkpoint has: its tables beside real checkpoints of every stage."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from burnish.commands.cli import main
from burnish.diffusion.scheduler_file import SCHEDULER_FILE
from burnish.errors import BurnishError
from burnish.finetune.stage import STAGES
from burnish.runs.checkpoint import Checkpoints, FinetuneState, PretrainState, TrainerFile
from burnish.runs.state import load_state, save_state

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "data" / "format1"
CLONED = FILES / "comparison" / "inverted_double_pendulum" / "pretrain" / "seed3"
SHORT = ("task=inverted_double_pendulum", "evaluation.episodes=1", "evaluation.backend=sync")
RL = (*SHORT, "n_envs=2", "backend=sync", "total_env_steps=40", "eval_every=0")
REPLAY = ("stage.buffer_size=100", "stage.batch_size=8", "stage.demos=null", "stage.learning_starts=16")
OFF_POLICY = (*REPLAY, "stage.demo_ratio=0.0", "stage.critic_warmup_updates=1")
DRAWING = (*OFF_POLICY, f"policy={CLONED}")
RUNS = {
    "dppo": ("finetune", *RL, "stage.n_steps=4", "stage.batch_size=16", "stage.update_epochs=1", f"policy={CLONED}"),
    "dpmd": ("finetune", *RL, *DRAWING),
    "sdac": ("finetune", *RL, *DRAWING, "stage.bc_coef=0"),
    "best_of_n": ("finetune", *RL, *DRAWING),
    "idql": ("finetune", *RL, *DRAWING),
    "qsm": ("finetune", *RL, *DRAWING),
    "qvpo": ("finetune", *RL, *DRAWING),
    "dacer": ("finetune", *RL, *DRAWING),
    "dipo": ("finetune", *RL, *DRAWING),
    "dql": ("finetune", *RL, *DRAWING),
    "qc": ("finetune", *RL, *DRAWING),
    "calql": ("scratch", *RL, *OFF_POLICY, "network=gaussian"),
    "rlpd": ("scratch", *RL, *OFF_POLICY, "network=gaussian", "stage.utd_ratio=1"),
    "dsrl": ("finetune", *RL, *DRAWING),
    "residual": ("finetune", *RL, *DRAWING),
    "ogpo": ("finetune", *RL, *DRAWING, "stage.actor_every=1", "stage.states=4"),
    "sac": ("scratch", *RL, *REPLAY, "network=gaussian"),
    "td3": ("scratch", *RL, *REPLAY, "network=gaussian"),
    "ppo": (
        *("finetune", *RL, "stage.n_steps=4", "stage.batch_size=4", "stage.n_epochs=1"),
        f"policy={FILES / 'runs' / 'gaussian'}",
    ),
}
WITHOUT_SCHEDULE = ("sac", "td3", "ppo", "calql", "rlpd", "dsrl", "residual")


def documented() -> dict[str, list[str]]:
    """Heading -> the first column of the table below it."""
    sections = re.split(r"^#+ ", (ROOT / "docs" / "checkpoint.md").read_text(), flags=re.MULTILINE)
    return {text.splitlines()[0]: re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE) for text in sections[1:]}


def keys_of(stage: str) -> list[str]:
    """Of the table whose heading names the stage."""
    (found,) = (
        keys for heading, keys in documented().items() if stage in heading.removeprefix("`stage` of ").split(", ")
    )
    return found


def checkpoint(run: Path) -> Path:
    latest = Checkpoints(run / "checkpoints").latest()
    assert latest is not None
    return latest


def test_every_stage_is_tested():
    assert RUNS.keys() | {"frozen"} == STAGES.keys()  # which has nothing to keep


@pytest.mark.parametrize("stage", RUNS)
def test_a_fine_tunings_checkpoint_has_what_is_documented(stage, tmp_path):
    command, *words = RUNS[stage]
    assert main([command, *words, f"stage={stage}", f"run_dir={tmp_path / 'run'}"]) == 0
    folder, tables = checkpoint(tmp_path / "run"), documented()
    absent = {SCHEDULER_FILE} if stage in WITHOUT_SCHEDULE else set()
    assert {path.name for path in folder.iterdir()} == set(tables["Files"]) - absent
    trainer = load_state(folder / "trainer.pt")
    assert list(trainer) == tables["trainer.pt"]
    assert list(trainer["state"]) == tables["`state` of a fine-tuning"]
    assert list(trainer["state"]["stage"]) == keys_of(stage)
    assert trainer["state"]["updates"] > 0


def test_a_pretrainings_checkpoint_has_what_is_documented(tmp_path):
    data = f"dataset={FILES / 'demos.hdf5'}"
    assert main(["pretrain", *SHORT, data, "train.epochs=1", f"run_dir={tmp_path / 'run'}"]) == 0
    folder, tables = checkpoint(tmp_path / "run"), documented()
    assert sorted(path.name for path in folder.iterdir()) == sorted(tables["Files"])
    trainer = load_state(folder / "trainer.pt")
    assert list(trainer) == tables["trainer.pt"]
    assert list(trainer["state"]) == tables["`state` of a pretraining"]
    assert list(trainer["state"]["trainer"]) == tables["`trainer` of a pretraining"]


def test_the_dataclasses_are_what_is_documented():
    tables = documented()
    for kind, heading in (
        (TrainerFile, "trainer.pt"),
        (FinetuneState, "`state` of a fine-tuning"),
        (PretrainState, "`state` of a pretraining"),
    ):
        assert [field.name for field in fields(kind)] == tables[heading]


def test_a_state_of_another_kind_is_told_an_older_and_a_newer_one_is_read(tmp_path):
    state = PretrainState(trainer={"step": 1}, best=(0.0, 1.0))
    TrainerFile.now(state, 3).write(tmp_path)
    saved = TrainerFile.read(tmp_path)
    assert (saved.n_metric_lines, saved.restore(PretrainState, tmp_path)) == (3, state)
    with pytest.raises(BurnishError, match=r"trainer\.pt is no checkpoint of such a run: it lacks stage, envs"):
        saved.restore(FinetuneState, tmp_path)
    old: dict[str, Any] = dict.fromkeys((field.name for field in fields(FinetuneState)), 0)
    old |= {key: {} for key in ("stage", "envs", "statistics", "before", "episodes")}
    old |= {"best": (0.0, 0.0), "noise_compared": False, "unfinished": None}
    del old["unlogged"]
    content = {"state": old | {"later": 1}, "random": saved.random, "n_metric_lines": 0, "later": 1}
    save_state(tmp_path / "trainer.pt", content)
    assert TrainerFile.read(tmp_path).restore(FinetuneState, tmp_path).unlogged == (0.0, 0)
