"""The processes that vector environments live in, what they are told, and the memory that they share.

They are spawned, not forked: a fork of a process with torch's threads can deadlock. Several vector environments may
share the same ones: each process takes seconds to start, and robosuite's libraries 200 MiB in it.

Symbols: E environments, W workers, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Bools, ChunkStep, Floats
from burnish.envs.vector.episode import ChunkedEnv, MakeSimulator, chunk_arrays
from burnish.errors import BurnishError, SimulatorsLost
from burnish.machine.children import be_a_child, die_with_parent, in_main_thread, kill, start_child
from burnish.machine.stop import asked_to_stop
from burnish.observations import ObsSpec
from burnish.plugins import import_plugins, imported_plugins

_ALIGNMENT = 64
_SECONDS_TO_CLOSE = 5.0
_SECONDS_TO_DROP = 30.0  # of environments whose workers others use as well
_SECONDS_TO_CLOSE_BUSY = 1.0  # of a worker that has not answered: it may never
_SECONDS_WHEN_ASKED = 2.0  # that workers still have when the process was asked to stop
_LOOK_SECONDS = 0.5  # between two looks at workers that do not answer
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
    at: NDArray[np.int64]  # (E,) at a worker's first environment: the one that it has come to
    out: ChunkStep


def shared_arrays(sizes: Sizes, memory: SharedMemory | None) -> tuple[SharedArrays, int]:
    """The arrays laid out one after the other in `memory` (without it: in private memory), and their size."""
    templates: list[NDArray[Any]] = [
        np.zeros((sizes.n_envs, sizes.n_action_steps, sizes.action_dim), np.float32),
        np.zeros(sizes.n_envs, np.bool_),
        np.zeros(sizes.n_envs, np.int64),
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
    actions, mask, nonfinite, at, *out = arrays
    return SharedArrays(actions, mask, nonfinite, at, ChunkStep(*out)), sum(sizes_in_memory)


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


def _make_envs(plan: WorkerPlan, begins: Callable[[int], None]) -> list[ChunkedEnv]:
    envs = []
    for index in plan.indices:
        begins(index)
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

    def __init__(self, plan: WorkerPlan, begins: Callable[[int], None]) -> None:
        self.indices = plan.indices
        self.envs = _make_envs(plan, begins)
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
            self.arrays.at[self.indices.start] = index
            with _blame(index):
                env.reset(seed)
            self.arrays.out.obs[index] = env.history

    def step(self, _: None) -> None:
        actions, mask, nonfinite, at, out = self.arrays
        first = self.indices.start
        for index, env in zip(self.indices, self.envs):
            if not mask[index]:
                env.stand_still(out)
                continue
            at[first] = index
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


def _serve(connection: Connection, plugins: Sequence[str], dies: bool) -> None:
    """The worker process: answer commands until "end", or until the parent's end of the pipe is gone.

    A command is (vector environment, method of `_Worker`, argument); "make" and "close" begin and end one.
    """
    be_a_child()
    if dies:
        die_with_parent()
    workers: dict[int, _Worker] = {}
    try:
        import_plugins(plugins)
        while True:
            vector, command, argument = connection.recv()
            if command == "end":
                break
            try:
                if command == "make":
                    workers[vector] = _Worker(argument, lambda index: connection.send(("at", index)))
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
        return None
    if command == "close":
        return workers.pop(vector).close()
    return getattr(workers[vector], command)(argument)


class Limit(NamedTuple):
    """How long a command may take.

    Attributes:
        seconds: without an answer, in one environment.
        at: the environment that a worker has come to; None where the worker tells, or has nothing to tell.
    """

    seconds: float
    at: Callable[[int], int] | None = None


class Workers:
    """W processes, and the vector environments that live in them.

    A worker that raises, dies or does not answer in time closes all of them and raises here, naming the worker: never a
    hang.

    Args:
        timeout: seconds that sending to a worker, or receiving what it has begun to send, may take.
    """

    def __init__(self, n_workers: int, timeout: float) -> None:
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.closed = False
        self._timeout = timeout
        self._connections: list[Connection] = []
        self._pending: set[int] = set()  # workers that have not answered yet
        self._hanging: set[int] = set()  # among them
        self._indices: Sequence[range] = []  # the environments that the last command is for
        self._limit = Limit(timeout)  # of the last command
        self._command = ""
        self._told: dict[int, int] = {}  # worker -> the environment that it is making
        self._lost: str | None = None  # what was said when they were lost
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
        _limit_in_time(ours, self._timeout)
        process = context.Process(
            target=_serve,
            args=(theirs, imported_plugins(), in_main_thread()),
            daemon=True,
            name=f"burnish-env-{len(self)}",
        )
        with _one_thread():
            start_child(process)
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
            with suppress(RuntimeError, BurnishError):  # nor one that has died
                self.command(vector, "close", [None] * len(self), indices, Limit(min(self._timeout, _SECONDS_TO_DROP)))

    def command(
        self, vector: int, command: str, arguments: Sequence[Any], indices: Sequence[range], limit: Limit
    ) -> list[Any]:
        """Send one command to every worker, each with its own argument -> the answers in order.

        Raises SimulatorsLost where a worker dies or does not answer within `limit`.
        """
        self.settle()
        self._indices, self._limit, self._command = indices, limit, command
        self._told.clear()
        for w, (connection, argument) in enumerate(zip(self._connections, arguments)):
            self._pending.add(w)
            try:
                connection.send((vector, command, argument))
            except BlockingIOError:
                self._report_hang(w, self._timeout)
            except OSError:
                self._report_death(w)
        return self._collect()

    def settle(self) -> None:
        """Wait for the answers to a command that a Ctrl-C interrupted: its workers may still read shared memory."""
        if self._lost:
            raise SimulatorsLost(self._lost)
        if self.closed:
            raise RuntimeError("this WorkerVectorEnv is closed")
        if self._pending:
            self._collect()

    def _collect(self) -> list[Any]:
        answers: list[Any] = [None] * len(self)
        sentinels = [process.sentinel for process in self.processes]
        patience = _Patience(self._limit.seconds, self._at)
        while self._pending:
            ready = set(wait([*(self._connections[w] for w in self._pending), *sentinels], _LOOK_SECONDS))
            if not ready:
                for w in sorted(self._pending):
                    if (seconds := patience.exhausted(w)) is not None:
                        self._report_hang(w, seconds)
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
        except BlockingIOError:
            self._report_hang(w, self._timeout)
        except (EOFError, OSError):
            self._report_death(w)
        if kind == "at":
            self._told[w] = answer
            return None
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
        process = self.processes[w]
        process.join(_SECONDS_TO_CLOSE)
        self._lose(
            f"{self._called(w)} died (exit code {process.exitcode}); "
            "-9 may be a lack of memory: use fewer environments or workers"
        )

    def _report_hang(self, w: int, seconds: float) -> NoReturn:
        self._hanging.add(w)
        at = self._at(w)
        where = "" if at is None or self._command not in ("make", "reset", "step") else f" in environment {at}"
        said = f"{self._called(w)} has not answered to {self._command!r} for {seconds:.0f} s{where}"
        if asked_to_stop():
            self._lose(said, asked=True)
        self._lose(f"{said}: its simulator hangs, or takes longer than worker_timeout allows")

    def _at(self, w: int) -> int | None:
        """The environment that a worker has come to, where that is known."""
        return self._told.get(w) if self._limit.at is None else self._limit.at(w)

    def _called(self, w: int) -> str:
        indices = self._indices[w]
        return f"worker {w} (environments {indices.start} to {indices.stop - 1})"

    def _lose(self, said: str, *, asked: bool = False) -> NoReturn:
        self._lost = said
        self.close()
        raise SimulatorsLost(said, asked=asked)

    def close(self) -> None:
        """End the workers. Those that have not ended by themselves after 5 seconds are killed, those that have not
        answered to a command sooner."""
        if self.closed:
            return
        self.closed = True
        try:
            for w, connection in enumerate(self._connections):
                if w not in self._hanging:
                    with suppress(OSError):
                        connection.send((None, "end", None))
            began = time.monotonic()
            for w, process in enumerate(self.processes):
                given = _SECONDS_TO_CLOSE_BUSY if w in self._pending else _SECONDS_TO_CLOSE
                if w not in self._hanging:
                    process.join(max(0.0, began + given - time.monotonic()))
        finally:
            for process in self.processes:
                if process.is_alive():
                    kill(process)
            for connection in self._connections:
                connection.close()
            atexit.unregister(self.close)


class _Patience:
    """How long each worker has been where it is, as far as that was looked at."""

    def __init__(self, limit: float, at: Callable[[int], int | None]) -> None:
        self._limit, self._at = limit, at
        self._asked: float | None = None  # time.monotonic() of the first look after the process was asked to stop
        self._seen: dict[int, tuple[int | None, float]] = {}  # worker -> environment, since when

    def exhausted(self, w: int) -> float | None:
        """Seconds without an answer where they were too many; else None. Asked after a while without answers."""
        now, at = time.monotonic(), self._at(w)
        if w not in self._seen or self._seen[w][0] != at:
            self._seen[w] = at, now - _LOOK_SECONDS
        seconds = now - self._seen[w][1]
        if asked_to_stop():
            self._asked = now if self._asked is None else self._asked
            return seconds if now - self._asked >= _SECONDS_WHEN_ASKED else None
        return seconds if seconds >= self._limit else None


def _limit_in_time(connection: Connection, seconds: float) -> None:
    """Make sending and receiving raise BlockingIOError where the other end does not take or give for so long."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, limit)


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
