"""Collect demonstrations: roll out a behaviour and record what it did."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.collecting.recorder import Recorder, Recording
from burnish.datasets.episodes import Demonstrations
from burnish.errors import BurnishError, SimulatorsLost
from burnish.machine.children import be_a_child, die_with_parent, in_main_thread, kill, start_child
from burnish.machine.disk import require_writable
from burnish.machine.watch import Watch
from burnish.plugins import import_plugins
from burnish.runs.progress import Progress

Recordings = Generator[tuple[int, Recording], None, None]


def collect(config: CollectConfig) -> Demonstrations:
    """Roll out the behaviour, write the file, give what was written.

    Episodes end shortly after success, where the environment ends them, or at the time limit. Episode i
    depends on `seed` + i alone, not on the other episodes nor on the number of workers.

    Raises BurnishError if the file exists (without `overwrite`) or cannot be written, the behaviour does not fit
    the task, or no episode is left to write.
    """
    from burnish.datasets.formats import d4rl, robomimic
    from burnish.envs.robosuite.env import env_args_of

    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise BurnishError(f"{out} exists already: choose another name or set overwrite=true")
    require_writable(out.parent)
    recordings = record_all(config)
    kept = [recording for recording in recordings if recording.success or not config.successes_only]
    if not kept:
        raise BurnishError(
            f"{out}: none of the {config.episodes} episodes succeeded: nothing to write with successes_only"
        )
    names = [f"demo_{i}" for i in range(len(kept))]
    episodes = [replace(recording.episode, name=name) for recording, name in zip(kept, names)]
    levels = {recording.level for recording in kept} - {""}
    masks = {level: [name for name, one in zip(names, kept) if one.level == level] for level in sorted(levels)}
    env_args = env_args_of(config.task) if config.task.suite == "robosuite" else None
    demos = Demonstrations(episodes, env_args, masks, source=str(out), unit_actions=True)
    write = d4rl.write if list(episodes[0].obs) == ["flat"] else robomimic.write  # the former has one observation
    write(out, demos)
    return demos


def record_all(config: CollectConfig) -> list[Recording]:
    """All episodes, in the order of their seeds."""
    recordings: dict[int, Recording] = {}
    n_workers = min(config.n_workers, config.episodes)
    stream = _in_this_process(config) if n_workers == 1 else _in_workers(config, n_workers)
    successes = 0
    with closing(stream), Progress(config.episodes, f"collect {config.task.name}") as progress:
        for index, recording in stream:
            recordings[index] = recording
            successes += recording.success
            progress.update(1, success=successes / len(recordings))
    return [recordings[index] for index in range(config.episodes)]


def _in_this_process(config: CollectConfig) -> Recordings:
    recorder, watch = Recorder(config), Watch(config.worker_timeout, "the simulator")
    try:
        for index in range(config.episodes):
            watch.begin()
            recording = recorder.record(index)
            watch.end()
            yield index, recording
    except KeyboardInterrupt as interrupt:
        if watch.fired:
            raise _hangs(config) from interrupt
        raise
    finally:
        watch.end()
        watch.close()


def _hangs(config: CollectConfig) -> SimulatorsLost:
    return SimulatorsLost(
        f"no episode was finished in worker_timeout={config.worker_timeout:g} s: the simulator hangs, or an episode "
        "takes longer"
    )


def _in_workers(config: CollectConfig, n_workers: int) -> Recordings:
    """The episodes in the order in which the worker processes finish them."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Any, Any] = {}  # pipe -> process
    try:
        for first in range(n_workers):
            ours, theirs = context.Pipe(duplex=False)
            indices = range(first, config.episodes, n_workers)
            workers[ours] = context.Process(target=_work, args=(config, indices, theirs, in_main_thread()), daemon=True)
            start_child(workers[ours])
            theirs.close()
        pipes: list[Any] = list(workers)
        while pipes:
            ready = connection.wait(pipes, config.worker_timeout)
            if not ready:
                raise _hangs(config)
            for pipe in ready:
                message = _receive(pipe, workers)
                if message is None:
                    pipes.remove(pipe)
                else:
                    yield message
    finally:
        for process in workers.values():
            if process.is_alive():
                kill(process)


def _receive(pipe: Any, workers: dict[Any, Any]) -> tuple[int, Recording] | None:
    try:
        message = pipe.recv()
    except EOFError:
        process = workers[pipe]
        process.join()
        raise BurnishError(
            f"a collecting process died (exit code {process.exitcode}), perhaps of memory: try n_workers=1"
        ) from None
    if isinstance(message, Exception):
        raise message
    return message


def _work(config: CollectConfig, indices: range, pipe: Any, dies: bool) -> None:
    """A worker process: sends each episode of `indices` and then None, or the exception that stopped it."""
    be_a_child()
    if dies:
        die_with_parent()
    if config.behaviour != "expert":
        import torch

        torch.set_num_threads(1)  # the processes share the cores among themselves
    try:
        import_plugins(config.plugins)
        recorder = Recorder(config)
        for index in indices:
            pipe.send((index, recorder.record(index)))
        pipe.send(None)
    except Exception as error:
        pipe.send(error)
