"""--multirun: the combinations of several values, one job after another."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Any, NamedTuple

from burnish.commands.printing import print_config, report
from burnish.commands.table import Command
from burnish.compose import compose, expand_sweep, split
from burnish.errors import BurnishError, Stopped
from burnish.foreign import of_the_machine


class Job(NamedTuple):
    """One combination: `label` names what differs from the other jobs."""

    label: str
    config: dict[str, Any]


def plan(command: Command, overrides: list[str]) -> list[Job]:
    """The jobs of a sweep, all of them checked.

    Each has a run folder of its own, `<run_dir>/<index>_<its values>`; run_dir is runs/<command>-sweep
    unless it is given. Raises BurnishError for the first job that is misconfigured.
    """
    if any(split(override)[0] == "resume" for override in overrides):
        raise BurnishError("resume=... with --multirun: resume each run by itself, with resume=<run_dir>/<its folder>")
    jobs = []
    for index, values in enumerate(expand_sweep(command.config, overrides)):
        swept = [value for value in values if value not in overrides]
        config = compose(command.config, values)
        if command.lengths:
            given = any(split(override)[0] == "run_dir" for override in overrides)
            root = config["run_dir"] if given else f"runs/{command.name}-sweep"
            config["run_dir"] = f"{root}/{'_'.join([str(index), *map(_folder_name, swept)])}"
        command.parse(config)
        jobs.append(Job(" ".join(swept) or "(one job: no key has several values)", config))
    return jobs


def run_sweep(command: Command, overrides: list[str], only_print: bool = False) -> int:
    """Run the jobs one after another -> 0, or 1 if one failed, or 130 if it was asked to stop.

    A failed job is reported and the others go on.
    """
    jobs = plan(command, overrides)
    outcomes: list[str] = []
    for number, job in enumerate(jobs, start=1):
        print(f"--- job {number} of {len(jobs)}: {job.label}", flush=True)
        if only_print:
            print_config(command, job.config)
            outcomes.append("done")
        else:
            outcomes.append(_run(command, job))
        if outcomes[-1] == "stopped":
            break
    outcomes += ["not started"] * (len(jobs) - len(outcomes))
    print("--- sweep")
    for job, outcome in zip(jobs, outcomes):
        print(f"{outcome:<12}{job.label}")
    if "stopped" in outcomes:
        return 130
    return 0 if all(outcome == "done" for outcome in outcomes) else 1


def _run(command: Command, job: Job) -> str:
    try:
        report(command.run(command.parse(job.config)))
    except Stopped as stopped:
        print(f"burnish: {stopped}", file=sys.stderr)
        return "stopped"
    except KeyboardInterrupt:
        print("burnish: interrupted", file=sys.stderr)
        return "stopped"
    except BurnishError as error:
        print(f"burnish: error: {error}", file=sys.stderr)
        return "failed"
    except Exception as error:  # one job's defect must not cost the others
        if said := of_the_machine(error):
            print(f"burnish: error: {said}", file=sys.stderr)
        else:
            traceback.print_exc()
        return "failed"
    return "done"


def _folder_name(override: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", override.lstrip("+"))[:60]
