"""What can be said of a task: each method beside the frozen policy, constant weights and best of N.

All of them are the last checkpoint at its best temperature, or with the best of N by Q, paired by seed and by initial
state. What is above those that are there counts as a gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from burnish.compare.document import Block, Bullets, Column, Heading, Paragraph, Table, Value, shown
from burnish.compare.grouping import Method, TaskRuns
from burnish.compare.results import Evaluated, PairedDifference, RunResult, installed_stage, paired_difference
from burnish.compare.statistics import Estimate
from burnish.compare.tables import SIGNED, actions, measure_of

CONSTANT = "constant"  # name of the method whose draws all weigh the same
VERDICTS = (
    "Method minus baseline at the last checkpoint, over the same initial states, mean over the seeds that both have, "
    "with the 95 % interval of the paired bootstrap over initial states: how another seed would do is not in it. Both "
    "act at their best temperature, or with the best of N by Q where that is said. A gain counts where a method is "
    "above the frozen policy, constant weights and best of N, as far as they are in the comparison."
)
NO_VERDICT = (
    "No verdict: it takes a method with stage=frozen, and runs that were evaluated at their best temperature (older "
    "ones were not)."
)


class Contender(NamedTuple):
    """A method and how it acts."""

    method: Method
    selected: bool  # with the best of N by Q, not at the best temperature

    def evaluated(self, run: RunResult) -> Evaluated | None:
        return run.last_selected if self.selected else run.at_best

    @property
    def can_act(self) -> bool:
        return bool(self.method.runs) and all(self.evaluated(run) for run in self.method.runs)

    def __str__(self) -> str:
        if self.selected:
            return f"{self.method.name}, {actions(True, self.method.runs[0].candidates)}"
        return f"{self.method.name}, best temperature"


class Verdict(NamedTuple):
    """`ours` - `theirs`."""

    ours: Contender
    theirs: Contender
    found: PairedDifference
    same_start: bool  # from the same policies

    @property
    def word(self) -> str:
        low, high = self.found.difference.interval
        return "above" if low > 0 else "below" if high < 0 else "not to be told apart from"

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.found.difference.mean, self.found.difference.interval)

    @property
    def beside(self) -> str:
        return f"{self.theirs}{'' if self.same_start else ' (of another policy)'}"


def verdict_blocks(task: TaskRuns) -> list[Block]:
    """The section of the report; none where nothing began with a pretrained policy."""
    if not any(method.pretrained for method in task.methods):
        return []
    blocks: list[Block] = [Heading(f"{task.name}: verdict", 3)]
    found = list(verdicts(task))
    if not any(not one.theirs.method.learns for one in found):
        return [*blocks, Paragraph(NO_VERDICT)]
    return [*blocks, Paragraph(VERDICTS), Bullets(tuple(sentences(task, found))), verdict_table(task, found)]


def verdicts(task: TaskRuns) -> Iterator[Verdict]:
    """Of each method that learns, in each way to act that it has, beside each baseline."""
    for method in task.learned:
        for ours in _ways(method):
            for baseline in task.methods:
                theirs = _as_baseline(baseline, ours)
                if theirs is not None and (verdict := _between(ours, theirs)):
                    yield verdict


def verdict_table(task: TaskRuns, found: list[Verdict]) -> Table:
    """Each of them with its numbers."""
    rows: list[list[Value]] = [
        [str(one.ours), one.beside, one.estimate, one.word, one.found.runs, one.found.episodes] for one in found
    ]
    columns = (
        Column("method"),
        Column("minus"),
        Column("difference [95 %]", SIGNED[measure_of(task).key]),
        Column("it is"),
        Column("seeds", "{:d}"),
        Column("initial states", "{:d}"),
    )
    return Table(f"{task.name}-verdicts", columns, rows)


def sentences(task: TaskRuns, found: list[Verdict]) -> Iterator[str]:
    """One for each method in each way to act."""
    form = SIGNED[measure_of(task).key]
    for ours in dict.fromkeys(str(one.ours) for one in found):
        mine = [one for one in found if str(one.ours) == ours]
        said = "; ".join(f"{one.word} {one.beside} ({shown(one.estimate, form)})" for one in mine)
        gain = all(one.word == "above" for one in mine) and any(not one.theirs.method.learns for one in mine)
        yield f"{ours}: {said}. {'A gain that counts' if gain else 'No gain that counts'}."


def remarks(task: TaskRuns) -> list[str]:
    """The runs that fell below their start, those that went back, and the methods that nothing more is known of."""
    said = []
    for method in task.methods:
        if method.runs and installed_stage(stage := method.runs[0].stage) is None:
            said.append(f"{method.name}: stage={stage} is not installed here; taken for one that trains the policy")
        for run in method.runs:
            name = f"{method.name}, seed {run.seed}"
            if run.fell:
                said.append(f"{name} fell below its start: {run.fell}")
            if run.went_back_to is not None:
                said.append(f"{name} went back to its checkpoint after {run.went_back_to:,} environment steps")
    return said


def imitation(task: TaskRuns) -> list[str]:
    """Whether the policies that the methods began with had converged, a line for each kind of them."""
    lines = []
    for group in task.pretrained:
        told: dict[int, bool | None] = {}
        for run in task.runs:
            if run.policy in group.evaluations and told.get(run.seed) is None:
                told[run.seed] = run.imitation_converged
        each = (
            f"{word} ({'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))})"
            for converged, word in ((True, "had converged"), (False, "had not converged"), (None, "is not told"))
            if (seeds := sorted(seed for seed, found in told.items() if found is converged))
        )
        lines.append(f"Whether the imitation had converged, {group.name}: {', '.join(each)}")
    return lines


def _ways(method: Method) -> list[Contender]:
    """How it acts in verdicts; the policy of best of N without Q is the frozen one."""
    both = [Contender(method, selected) for selected in (False, True)]
    chooses_alone = method.learns and not method.trains_policy
    return [one for one in both if one.can_act and (one.selected or not chooses_alone)]


def _as_baseline(method: Method, ours: Contender) -> Contender | None:
    """How `method` acts as a baseline of `ours`: alike where it can; None where it is none."""
    is_baseline = not method.trains_policy or method.name == CONSTANT
    ways = _ways(method) if is_baseline and method is not ours.method else []
    return next((one for one in ways if one.selected == ours.selected), ways[0] if ways else None)


def _between(ours: Contender, theirs: Contender) -> Verdict | None:
    """None where they have no seed, or no initial state, in common."""
    by_seed = {run.seed: run for run in theirs.method.runs}
    runs = [(by_seed[run.seed], run) for run in ours.method.runs if run.seed in by_seed]
    pairs = [(theirs.evaluated(their), ours.evaluated(our)) for their, our in runs]
    found = paired_difference([(before, after) for before, after in pairs if before and after])
    return found and Verdict(ours, theirs, found, all(their.policy == our.policy for their, our in runs))
