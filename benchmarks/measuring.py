"""What the benchmarks share: clocks, floors, and a description of the machine.

The floor of a network's cost is its matrix products alone, at the best float32 rate that anything reaches on this
machine in this moment: torch's large product, our own compiled one, or the instruction set (`peak.cpp`). That of an
environment step is the physics alone.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from burnish.envs.task import TaskConfig
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.runs.origin import origin

STATUS = "/proc/self/status"
PRODUCT, SMALL_PRODUCT = 2048, 512  # rows and columns of torch's product; small: whether it runs
PEAK_SOURCE = Path(__file__).with_name("peak.cpp")
PEAK_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-Wno-psabi", "-pthread", "-shared", "-fPIC")
PEAK_FLOP = 4e9  # of each thread: some 30 ms
ROWS, WIDTH, HIDDEN = 6144, 256, 8  # of our product: whole blocks, and weights that stay in a core's cache


def milliseconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


def peak_memory(status: str) -> float:
    """In MiB, of the kernel's `STATUS`; what getrusage gives begins at the parent's peak."""
    return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) / 1024


def products_gflop(run: Callable[[], object]) -> float:
    """Of the matrix products in `run`, which has torch make them: what runs compiled cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it would count as memory

    with patch.object(compiled_mlp, "_library", lambda: None), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


class Rates(NamedTuple):
    """GFLOP/s in float32 with all of torch's threads, of one moment; None: it cannot be measured here."""

    torch: float
    ours: float | None
    peak: float | None

    @property
    def best(self) -> float:
        return max(rate for rate in self if rate is not None)


class ProductRate:
    """The best rate that anything reaches in this moment, and what it was in all moments that were asked for.

    Args:
        quick: products too small to tell a rate, for whether it runs.

    Attributes:
        why_no_peak: why the instruction set's rate is left out; None if it is not.
    """

    def __init__(self, quick: bool = False) -> None:
        self.measured: list[Rates] = []
        self.size = SMALL_PRODUCT if quick else PRODUCT
        self._torch = torch_product(self.size)
        self._ours = our_product(ROWS // 16 if quick else ROWS) if compiled_mlp.why_not() is None else None
        try:
            self._peak: Callable[[], float] | None = peak(PEAK_FLOP / 16 if quick else PEAK_FLOP)
            self.why_no_peak: str | None = None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._peak, self.why_no_peak = None, str(error)

    def gflop_per_ms(self) -> float:
        runs = (self._torch, self._ours, self._peak)
        self.measured.append(Rates(*(run and gflop_per_second(run) for run in runs)))  # type: ignore[arg-type]
        return self.measured[-1].best / 1e3

    def floor_of(self, run: Callable[[], int]) -> Callable[[], float]:
        """ms of the matrix products alone of one unit of `run`, at this rate."""
        units: list[int] = []
        gflop = products_gflop(lambda: units.append(run())) / sum(units)
        return lambda: gflop / self.gflop_per_ms()

    def medians(self) -> Rates:
        columns = zip(*self.measured)
        return Rates(*(None if None in column else statistics.median(column) for column in columns))

    def to_json(self) -> dict[str, float | str | None]:
        """Medians, and why one is missing."""
        return {**self.medians()._asdict(), "best": self.median_best(), "why_no_peak": self.why_no_peak}

    def median_best(self) -> float:
        return statistics.median(moment.best for moment in self.measured)

    def sentence(self) -> str:
        """For the head of a table."""
        rates = self.medians()
        ours = f"not measured ({compiled_mlp.why_not()})" if rates.ours is None else f"{rates.ours:.0f}"
        peak = f"not measured ({self.why_no_peak})" if rates.peak is None else f"{rates.peak:.0f}"
        return (
            f"GFLOP/s in float32: torch's product of {self.size} x {self.size} {rates.torch:.0f}, our compiled one "
            f"{ours}, the instruction set's peak {peak}; floors are at the best of each moment, median "
            f"{self.median_best():.0f}"
        )


def torch_product(size: int, dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """A square product of torch's -> its floating-point operations."""
    x = torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(x)

    def run() -> float:
        torch.mm(x, x, out=out)
        return 2 * size**3

    return run


def our_product(rows: int) -> Callable[[], float]:
    """A compiled network's pass, which is products and little else -> their floating-point operations."""
    weight, bias = torch.randn(WIDTH, WIDTH) / WIDTH**0.5, torch.zeros(WIDTH)
    network = compiled_mlp.CompiledMLP(weight, [(weight, bias)] * HIDDEN, (weight, bias), activation="relu")
    x, given = torch.randn(rows, WIDTH), torch.zeros(1, WIDTH)

    def run() -> float:
        network(x, given)
        return 2 * rows * WIDTH**2 * (1 + HIDDEN + 1)

    return run


def peak(flop_per_thread: float) -> Callable[[], float]:
    """Multiplications and additions in registers -> their number.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: there is no compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "peak.so")
        command = [*compiler, *PEAK_FLAGS, "-o", str(built), str(PEAK_SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if result.returncode:
            raise OSError(f"{compiler[0]} fails at {PEAK_SOURCE.name}: status {result.returncode}")
        library = ctypes.CDLL(str(built))
    library.burnish_peak.restype = ctypes.c_double
    out = ctypes.c_float()

    def flop(threads: int, rounds: int) -> float:
        return library.burnish_peak(threads, ctypes.c_long(rounds), ctypes.c_float(0.5), ctypes.byref(out))

    rounds = round(flop_per_thread / flop(1, 1))
    return lambda: flop(torch.get_num_threads(), rounds)


def gflop_per_second(run: Callable[[], float]) -> float:
    """Of what gives its number of floating-point operations; the faster of two."""

    def once() -> float:
        started = time.perf_counter()
        return run() / 1e9 / (time.perf_counter() - started)

    return max(once(), once())


def random_actions(shape: tuple[int, ...], seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.uniform(-1, 1, shape).astype(np.float32)


class Physics(NamedTuple):
    steps_per_second: float
    cpu_microseconds_per_step: float


def physics_alone(task: TaskConfig, seconds: float) -> Physics:
    """One process that only calls mj_step, over states of random episodes; `task` is one of gymnasium's."""
    import mujoco  # here, as bench_rsm measures the memory of what does without

    from burnish.envs.gymnasium.simulator import make_gymnasium

    simulator = make_gymnasium(task)
    env = simulator._env
    wall, cpu, steps = 0.0, 0.0, 0
    simulator.reset(0)
    for action in random_actions((simulator.action_dim,)):
        env.data.ctrl[:] = action * simulator._half_range + simulator._center
        started, cpu_started = time.perf_counter(), time.process_time()
        mujoco.mj_step(env.model, env.data, env.frame_skip)
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - cpu_started
        steps += 1
        if wall >= seconds:
            break
        if steps % task.max_episode_steps == 0 or not getattr(env, "is_healthy", True):
            simulator.reset(None)
    return Physics(steps / wall, 1e6 * cpu / steps)


def setup(threads: int, load_before: float) -> dict[str, object]:
    """What belongs beside a benchmark's numbers in its JSON; asked for at its end."""
    return {**origin()._asdict(), "threads": threads, "cpus": os.cpu_count(), "load": (load_before, os.getloadavg()[0])}
