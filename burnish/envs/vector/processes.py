"""The processes that vector environments live in, what they are told, and the memory that they share.

They are spawned, not forked: a fork of a process with torch's threads can deadlock. Several vector environments may
share the same ones: each process takes seconds to start, and robosuite's libraries 200 MiB in it.

Symbols: E environments, W workers, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Bools, ChunkStep, Floats
from burnish.envs.vector.episode import ChunkedEnv, MakeSimulator, chunk_arrays
from burnish.errors import BurnishError
from burnish.observations import ObsSpec

_ALIGNMENT = 64
_SECONDS_TO_CLOSE = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Sizes(NamedTuple):
    """What fixes the shapes of all shared arrays."""

    n_envs: int
    n_obs_steps: int
    n_action_steps: int
    obs_spec: ObsSpec
    action_dim: int


class SharedArrays(NamedTuple):
    """Views of one block of shared memory."""

    actions: Floats  # (E, Ta, Da)
    mask: Bools  # (E,)
    nonfinite_episodes: NDArray[np.int64]  # (E,)
    out: ChunkStep


def shared_arrays(sizes: Sizes, memory: SharedMemory | None) -> tuple[SharedArrays, int]:
    """The arrays laid out one after the other in `memory` (without it: in private memory), and their size."""
    templates: list[NDArray[Any]] = [
        np.zeros((sizes.n_envs, sizes.n_action_steps, sizes.action_dim), np.float32),
        np.zeros(sizes.n_envs, np.bool_),
        np.zeros(sizes.n_envs, np.int64),
        *chunk_arrays(sizes.n_envs, sizes.n_obs_steps, sizes.n_action_steps, sizes.obs_spec),
    ]
    sizes_in_memory = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in templates]
    if memory is None:
        arrays = templates
    else:
        offsets = [sum(sizes_in_memory[:i]) for i in range(len(templates))]
        arrays = [
            np.ndarray(array.shape, array.dtype, buffer=memory.buf, offset=offset)
            for array, offset in zip(templates, offsets)
        ]
    actions, mask, nonfinite, *out = arrays
    return SharedArrays(actions, mask, nonfinite, ChunkStep(*out)), sum(sizes_in_memory)


class WorkerPlan(NamedTuple):
    """What a worker needs to make its environments."""

    make: MakeSimulator
    indices: range
    n_obs_steps: int
    n_action_steps: int
    max_episode_steps: int
    seed: int
    autoreset: bool
    ends_at_success: bool


class _EnvironmentFailed(Exception):
    """An exception in one environment; the cause is chained."""


@contextmanager
def _blame(index: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _EnvironmentFailed(f"environment {index}") from error


def _make_envs(plan: WorkerPlan) -> list[ChunkedEnv]:
    envs = []
    for index in plan.indices:
        with _blame(index):
            envs.append(
                ChunkedEnv(
                    plan.make(),
                    n_obs_steps=plan.n_obs_steps,
                    n_action_steps=plan.n_action_steps,
                    max_episode_steps=plan.max_episode_steps,
                    seed=plan.seed,
                    index=index,
                    autoreset=plan.autoreset,
                    ends_at_success=plan.ends_at_success,
                )
            )
    return envs


class _Worker:
    """The worker's side: one method for each command."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.indices = plan.indices
        self.envs = _make_envs(plan)
        self.memory: SharedMemory | None = None
        self.arrays: SharedArrays

    def sizes(self, _: None) -> tuple[ObsSpec, int]:
        simulator = self.envs[0].simulator
        return simulator.obs_spec, simulator.action_dim

    def attach(self, argument: tuple[str, Sizes]) -> None:
        name, sizes = argument
        self.memory = SharedMemory(name)
        self.arrays, _ = shared_arrays(sizes, self.memory)

    def reset(self, seeds: list[int | None]) -> None:
        for index, env, seed in zip(self.indices, self.envs, seeds):
            with _blame(index):
                env.reset(seed)
            self.arrays.out.obs[index] = env.history

    def step(self, _: None) -> None:
        actions, mask, nonfinite, out = self.arrays
        for index, env in zip(self.indices, self.envs):
            if not mask[index]:
                env.stand_still(out)
                continue
            try:
                env.step(actions[index], out)
            except Exception as error:  # not `_blame`: a context manager for each step costs microseconds
                raise _EnvironmentFailed(f"environment {index}") from error
            nonfinite[index] = env.nonfinite_episodes

    def state_dict(self, _: None) -> list[dict[str, Any]]:
        return [env.state_dict() for env in self.envs]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for index, env, state in zip(self.indices, self.envs, states):
            with _blame(index):
                env.load_state_dict(state)
            self.arrays.nonfinite_episodes[index] = env.nonfinite_episodes

    def close(self) -> None:
        for env in self.envs:
            env.simulator.close()
        if self.memory is not None:
            del self.arrays  # numpy's views must go before the memory can
            self.memory.close()


def _serve(connection: Connection) -> None:
    """The worker process: answer commands until "end", or until the parent's end of the pipe is gone.

    A command is (vector environment, method of `_Worker`, argument); "make" and "close" begin and end one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # both may reach the whole process group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    workers: dict[int, _Worker] = {}
    try:
        while True:
            vector, command, argument = connection.recv()
            if command == "end":
                break
            try:
                answer = ("ok", _answer(workers, vector, command, argument))
            except NotImplementedError as error:  # a simulator that cannot save its state can go on
                answer = ("unsupported", str(error))
            connection.send(answer)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except _EnvironmentFailed as failure:
        cause = failure.__cause__
        if isinstance(cause, BurnishError):
            connection.send(("user", f"{failure}: {cause}"))
        else:
            connection.send(("error", f"{failure}: {''.join(traceback.format_exception(cause))}"))
    except Exception:
        connection.send(("error", traceback.format_exc()))
    finally:
        for worker in workers.values():
            worker.close()


def _answer(workers: dict[int, _Worker], vector: int, command: str, argument: Any) -> Any:
    if command == "make":
        workers[vector] = _Worker(argument)
        return None
    if command == "close":
        return workers.pop(vector).close()
    return getattr(workers[vector], command)(argument)


class Workers:
    """W processes, and the vector environments that live in them.

    A worker that raises or dies closes all of them and raises here, naming the worker: never a hang.
    """

    def __init__(self, n_workers: int) -> None:
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.closed = False
        self._connections: list[Connection] = []
        self._pending: set[int] = set()  # workers that have not answered yet
        self._indices: Sequence[range] = []  # the environments that the last command is for
        self._vectors: set[int] = set()
        self._admitted = 0
        atexit.register(self.close)  # workers ignore the SIGTERM by which multiprocessing would end them at exit
        try:
            for _ in range(n_workers):
                self._start()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.processes)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True, name=f"burnish-env-{len(self)}")
        with _one_thread():
            process.start()
        theirs.close()  # so that the worker's death closes the pipe
        self.processes.append(process)
        self._connections.append(ours)

    def admit(self) -> int:
        """A number for one more vector environment, whose first command is then "make"."""
        vector, self._admitted = self._admitted, self._admitted + 1
        self._vectors.add(vector)
        return vector

    def drop(self, vector: int, indices: Sequence[range]) -> None:
        """End a vector environment, and with the last one the workers."""
        self._vectors.discard(vector)
        if not self._vectors:
            self.close()
        elif not (self.closed or self._pending):  # a worker that does not answer must not hinder the end
            with suppress(RuntimeError):  # nor one that has died
                self.command(vector, "close", [None] * len(self), indices)

    def command(self, vector: int, command: str, arguments: Sequence[Any], indices: Sequence[range]) -> list[Any]:
        """Send one command to every worker, each with its own argument -> the answers in order."""
        self.settle()
        self._indices = indices
        for w, (connection, argument) in enumerate(zip(self._connections, arguments)):
            self._pending.add(w)
            try:
                connection.send((vector, command, argument))
            except OSError:
                self._report_death(w)
        return self._collect()

    def settle(self) -> None:
        """Wait for the answers to a command that a Ctrl-C interrupted: its workers may still read shared memory."""
        if self.closed:
            raise RuntimeError("this WorkerVectorEnv is closed")
        if self._pending:
            self._collect()

    def _collect(self) -> list[Any]:
        answers: list[Any] = [None] * len(self)
        sentinels = [process.sentinel for process in self.processes]
        while self._pending:
            ready = set(wait([*(self._connections[w] for w in self._pending), *sentinels]))
            for w in sorted(self._pending):
                if self._connections[w] in ready or sentinels[w] in ready:
                    answers[w] = self._receive(w)
            for w, sentinel in enumerate(sentinels):
                if sentinel in ready:
                    self._report_death(w)
        unsupported = next((answer for answer in answers if isinstance(answer, NotImplementedError)), None)
        if unsupported is not None:
            raise unsupported
        return answers

    def _receive(self, w: int) -> Any:
        try:
            kind, answer = self._connections[w].recv()
        except (EOFError, OSError):
            self._report_death(w)
        self._pending.remove(w)
        if kind == "ok":
            return answer
        if kind == "unsupported":
            return NotImplementedError(answer)  # raised when all have answered
        self.close()
        if kind == "user":
            raise BurnishError(f"worker {w}, {answer}")
        raise RuntimeError(f"worker {w} failed in {answer}")

    def _report_death(self, w: int) -> NoReturn:
        process, indices = self.processes[w], self._indices[w]
        process.join(_SECONDS_TO_CLOSE)
        exit_code = process.exitcode
        self.close()
        raise RuntimeError(
            f"worker {w} (environments {indices.start} to {indices.stop - 1}) died (exit code {exit_code}); "
            "-9 may be a lack of memory: use fewer environments or workers"
        )

    def close(self) -> None:
        """End the workers; those that have not ended by themselves after 5 seconds are killed."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        for connection in self._connections:
            with suppress(OSError):
                connection.send((None, "end", None))
        wait_until = time.monotonic() + _SECONDS_TO_CLOSE
        for process in self.processes:
            process.join(max(0.0, wait_until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for connection in self._connections:
            connection.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A child started inside computes with one thread: the libraries read these variables when they load,
    which is before any code of ours runs in the child."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
