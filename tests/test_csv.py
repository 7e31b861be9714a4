"""A CSV table -> demonstrations: numbers by hand, and what is said of wrong ones."""

from __future__ import annotations

import re

import numpy as np
import pytest

from burnish.commands.cli import main
from burnish.datasets.formats import csv_file
from burnish.datasets.load import load
from burnish.errors import BurnishError

GOOD = """episode,step,pos.1,pos.0,gripper,action.0,action.1,reward
a,0,1,2,0,0.5,-1,0
a,1,3,4,1,0.25,0.5,1

b,5,5,6,0,0,2,0
"""


@pytest.fixture
def table(tmp_path):
    def write(text: str):
        (tmp_path / "arm.csv").write_text(text)
        return tmp_path / "arm.csv"

    return write


def test_columns_become_observations_and_scaled_actions(table):
    demos = csv_file.read(table(GOOD), [0.5, 2])
    first, second = demos.episodes
    assert (first.name, second.name, len(first), len(second)) == ("demo_0", "demo_1", 2, 1)
    assert {key: values.tolist() for key, values in first.obs.items()} == {
        "pos": [[2, 1], [4, 3]],
        "gripper": [[0], [1]],
    }
    assert first.actions.tolist() == [[1, -0.5], [0.5, 0.25]] and second.actions.tolist() == [[0, 1]]
    assert first.rewards.tolist() == [0, 1] and not first.terminated.any() and first.final_obs is None
    assert csv_file.read(table(GOOD), [2]).episodes[0].actions[0].tolist() == [0.25, -0.5]


def test_ends_are_told_apart_from_cuts(table):
    demos = csv_file.read(table("episode,step,q,action,terminated\n0,0,1,0,0\n0,1,1,0,1\n1,0,1,0,0\n"))
    assert [episode.terminated.tolist() for episode in demos.episodes] == [[False, True], [False]]
    assert demos.episodes[0].rewards.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("episode,", "run,", r"no column episode: expected a first line such as"),
        ("pos.1", "pos.0", r"two columns have the same name"),
        ("gripper", "", r"a column is called '': expected a name"),
        ("gripper", "arm/gripper", r"a column is called 'arm/gripper': expected a name"),
        ("gripper", "..0", r"a column is called '\.': expected a name"),
        ("action.0,action.1", "x.0,x.1", r"no action: expected columns action\.0"),
        ("pos.1", "pos.3", r"no column pos\.1, but pos\.3: expected all from pos\.0 on"),
        ("a,1,3,4,1", "a,1,3,four,1", r"line 3: pos\.0 is 'four': expected a number"),
        ("a,1,3,4,1", "a,1,3,4", r"line 3 has 7 columns: expected 8"),
        ("a,1,3", "a,2,3", r"line 3: step 2 follows 0"),
        ("b,5,5,6,0,0,2,0\n", "b,5,5,6,0,0,2,0\na,2,3,4,1,0,0,0\n", r"line 6: episode a goes on here"),
        ("b,5,5", "b,5,nan", r"episode demo_1: observation 'pos' has NaN or infinity, first at step 0"),
        ("0.5,-1,0\n", "0.5,-2.5,0\n", r"line 2: action\.1 is -2\.5, 1\.25 times its scale: .* --action-scale"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(table, tmp_path, capsys, before, after, message):
    assert GOOD.count(before) == 1 or before == "pos.1"
    path = table(GOOD.replace(before, after))
    assert main(["data", "convert", str(path), str(tmp_path / "out.hdf5"), "--action-scale", "0.5", "2"]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert told.count("\n") == 1 and "arm.csv" in told and not (tmp_path / "out.hdf5").exists()


def test_what_is_no_table_is_refused(table, tmp_path):
    for text, message in (
        ("", "no column episode"),
        ("episode,step,q,action\n", "no lines after the first"),
        ("episode,step,action\n0,0,1\n", "no observation: expected columns"),
    ):
        with pytest.raises(BurnishError, match=message):
            csv_file.read(table(text))
    with pytest.raises(BurnishError, match="No such file"):
        csv_file.read(tmp_path / "none.csv")
    for scale in ([1, 1, 1], [0]):
        with pytest.raises(BurnishError, match="expected 1 or 2 numbers above 0"):
            csv_file.read(table(GOOD), scale)


def test_a_converted_file_is_what_the_table_says(table, tmp_path, capsys):
    out = tmp_path / "out.hdf5"
    assert main(["data", "convert", str(table(GOOD)), str(out), "--action-scale", "0.5", "2"]) == 0
    expected = csv_file.read(tmp_path / "arm.csv", [0.5, 2])
    for ours, theirs in zip(load(out).episodes, expected.episodes, strict=True):
        np.testing.assert_array_equal(ours.flat_obs(["gripper", "pos"]), theirs.flat_obs(["gripper", "pos"]))
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
    task = tmp_path / "task.yaml"
    task.write_text("name: my_arm\nsuite: none\nobs_keys: [joints]\n")
    more = ["--action-scale", "2", "--overwrite", "--task", str(task)]
    assert main(["data", "convert", str(tmp_path / "arm.csv"), str(out), *more]) == 2
    assert "has no observation 'joints'; it has: gripper, pos" in capsys.readouterr().err
    assert main(["data", "convert", str(out), str(out), "--action-scale", "2"]) == 2
    assert "--action-scale is for a CSV file" in capsys.readouterr().err
