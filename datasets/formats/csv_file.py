"""A table of numbers as any logger writes it: one line a control step.

    episode,step,joint_pos.0,joint_pos.1,gripper,action.0,action.1,reward
    0,0,0.12,-0.50,1,0.1,-0.2,0
    0,1,0.13,-0.52,1,0.1,-0.2,0

A step's line has the observation before its action. Columns KEY.0, KEY.1, ... are one observation of that name, and so
is a column without a number; action.0, action.1, ... are the action. `reward` (else 0) and `terminated` (else 0: the
episode was cut, not ended) may be left out.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.errors import BurnishError

EPISODE, STEP, ACTION, REWARD, TERMINATED = "episode", "step", "action", "reward", "terminated"


def read(path: Path, action_scale: Sequence[float] = (1.0,)) -> Demonstrations:
    """Read a table; actions are divided by `action_scale`, one number or one for each dimension, into [-1, 1].

    Raises BurnishError naming the file, the line and the column of what is missing, no number, out of order, or beyond
    its scale.
    """
    header, names, lines, table = _table(path)
    columns = _columns(path, header)
    rewards = columns.pop(REWARD, [])
    terminated = columns.pop(TERMINATED, [])
    actions = _scaled(path, table[:, columns.pop(ACTION)], action_scale, lines)
    if not columns:
        raise BurnishError(
            f"{path}: no observation: expected columns such as joint_pos.0 beside episode, step, action.0"
        )
    episodes: list[Episode] = []
    done: set[str] = set()
    for name, rows in groupby(range(len(names)), key=names.__getitem__):
        part = list(rows)
        if name in done:
            raise BurnishError(
                f"{path}: line {lines[part[0]]}: episode {name} goes on here: expected its lines together"
            )
        done.add(name)
        _check_steps(path, lines, part, table[part, header.index(STEP)])
        episodes.append(
            Episode(
                name=f"demo_{len(episodes)}",
                obs={key: table[np.ix_(part, chosen)].astype(np.float32) for key, chosen in columns.items()},
                actions=actions[part],
                rewards=table[part, rewards[0]].astype(np.float32) if rewards else np.zeros(len(part), np.float32),
                terminated=table[part, terminated[0]] != 0 if terminated else np.zeros(len(part), bool),
            )
        )
    return Demonstrations(episodes, source=str(path), unit_actions=True)


def _table(path: Path) -> tuple[list[str], list[str], list[int], NDArray[np.float64]]:
    """-> column names, the episode of each row, its line in the file, its numbers (that of the episode is 0)."""
    names, lines, rows = [], [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in (EPISODE, STEP) if name not in header]
            if missing or len(set(header)) < len(header):
                what = f"no column {missing[0]}" if missing else "two columns have the same name"
                raise BurnishError(f"{path}: {what}: expected a first line such as episode,step,joint_pos.0,action.0")
            of_episode = header.index(EPISODE)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise BurnishError(f"{path}: line {reader.line_num} has {len(row)} columns: expected {len(header)}")
                names.append(row[of_episode])
                lines.append(reader.line_num)
                rows.append(_numbers(path, reader.line_num, header, [*row[:of_episode], "0", *row[of_episode + 1 :]]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BurnishError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise BurnishError(f"{path}: no lines after the first: expected one for each step")
    return header, names, lines, np.array(rows)


def _numbers(path: Path, line: int, header: list[str], row: list[str]) -> list[float]:
    numbers = []
    for name, text in zip(header, row):
        try:
            numbers.append(float(text))
        except ValueError as error:
            raise BurnishError(f"{path}: line {line}: {name} is {text!r}: expected a number") from error
    return numbers


def _columns(path: Path, header: list[str]) -> dict[str, list[int]]:
    """Name of an observation, or `action`, `reward`, `terminated` -> its columns, in their order."""
    found: dict[str, dict[int, int]] = {}
    for column, name in enumerate(header):
        if name in (EPISODE, STEP):
            continue
        stem, _, number = name.rpartition(".")
        key, index = (stem, int(number)) if stem and number.isdecimal() else (name, 0)
        found.setdefault(key, {})[index] = column
    if ACTION not in found:
        raise BurnishError(f"{path}: no action: expected columns action.0, action.1, ...")
    for key, columns in found.items():
        if not key.strip(".") or set(key) & set("/\0"):
            raise BurnishError(f"{path}: a column is called {key!r}: expected a name that an HDF5 file can have")
        gap = next((i for i in range(max(columns) + 1) if i not in columns), None)
        if gap is not None:
            raise BurnishError(f"{path}: no column {key}.{gap}, but {key}.{max(columns)}: expected all from {key}.0 on")
    return {key: [columns[i] for i in sorted(columns)] for key, columns in found.items()}


def _scaled(
    path: Path, actions: NDArray[np.float64], action_scale: Sequence[float], lines: list[int]
) -> NDArray[np.float32]:
    Da = actions.shape[1]
    if len(action_scale) not in (1, Da) or not all(0 < scale < np.inf for scale in action_scale):
        given = " ".join(f"{scale:g}" for scale in action_scale)
        raise BurnishError(f"--action-scale {given}: expected 1 or {Da} numbers above 0, as {path} has {Da} actions")
    scaled = actions / np.array(action_scale)
    beyond = np.argwhere(np.abs(scaled) > 1 + 1e-6)
    if len(beyond):
        row, i = beyond[0]
        raise BurnishError(
            f"{path}: line {lines[row]}: action.{i} is {actions[row, i]:g}, {abs(scaled[row, i]):.3g} times its scale: "
            "actions are stored in [-1, 1], say with --action-scale what 1 stands for"
        )
    return scaled.astype(np.float32)


def _check_steps(path: Path, lines: list[int], rows: list[int], steps: NDArray[np.float64]) -> None:
    wrong = np.flatnonzero(np.diff(steps) != 1)
    if len(wrong):
        at = wrong[0] + 1
        raise BurnishError(
            f"{path}: line {lines[rows[at]]}: step {steps[at]:g} follows {steps[at - 1]:g}: expected each "
            "one more than the one before it, in one episode"
        )
