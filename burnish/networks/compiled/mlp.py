"""A small MLP's pass without gradients as compiled code (mlp.cpp): products, activations and biases of a block
of rows in one call, where torch makes a dozen passes over memory and as many calls; or a whole denoising chain of them.

It is compiled once for a machine, by its C++ compiler, into the user's cache folder; without a compiler torch's
operations do the same, more slowly, and other bits come out.

What is promised about bits, on every processor:

- A row's result depends on that row alone, whatever the number of rows and threads.
- A chain is what its passes are with torch's operations for the transitions between them.
- Every compiler gives the same, and so does every instruction set that rounds a product and a sum once, together
  (`LEVELS` from x86-64-v3 on, ARM). Which operations do so is written in the source: a compiler may not choose.

Not promised: torch's bits. Its products add in an order of their own, which changes with the processor, with the number
of threads, and where there are few rows (`burnish.evaluation.evaluate.act`).

Under `torch.autocast("cpu", torch.float16)` the products between a denoiser's hidden layers are float16's where the
processor has arithmetic for it: 11 bits of each number and of sums of 64 products, up to 65504. What cannot run
compiled there is torch's autocast.

Symbols: R rows, H width of the hidden layers, W numbers of a panel (`burnish_panel_width`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

T = TypeVar("T")

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC")
LEVELS = {
    "x86-64-v2": ("sse4_2",),
    "x86-64-v3": ("avx2", "fma", "f16c", "bmi1", "bmi2"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v4+fp16": ("avx512_fp16",),
}
"""x86's instruction sets, each with those before it -> what of a processor's flags it needs."""
BASELINE = "baseline"  # what every processor of this architecture can: all of ARM's (NEON)
ACTIVATION_CODES = {"relu": 0, "mish": 1}  # the source's enum
SWITCH = "BURNISH_COMPILED"  # environment variable; 0: torch's operations, a level: that one, 1: the highest there is
SWITCHED_OFF = f"{SWITCH}=0"


class _Network(ctypes.Structure):
    """The source's struct of that name."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("first", "hidden", "bias", "last", "last_bias")),
        *((name, ctypes.c_long) for name in ("n_in", "dim", "n_hidden", "n_out")),
        *((name, ctypes.c_int) for name in ("residual", "layer_norm", "activation", "half")),
    )


class CompiledMLP:
    """Copies of a network's weights, laid out for the compiled pass: for each panel of W outputs (inputs x W) numbers.

    Args:
        first: (n_in, H), of the inputs that differ from row to row.
        hidden: (weight (H, H), bias (H,)) of every further hidden layer; weights map rows: y = x weight + bias.
        last: (weight (H, n_out), bias (n_out,))
        residual: pairs of hidden layers are blocks x + W2 act(W1 act(x)).
        layer_norm: before every activation, without weights of its own.
        activation: of `ACTIVATION_CODES`.
        half: products between hidden layers in float16.
    """

    def __init__(
        self,
        first: Tensor,
        hidden: Sequence[tuple[Tensor, Tensor]],
        last: tuple[Tensor, Tensor],
        *,
        activation: str,
        residual: bool = False,
        layer_norm: bool = False,
        half: bool = False,
    ):
        library = _library()
        assert library is not None
        self._run, self._run_chain, width = library.burnish_mlp, library.burnish_chain, library.burnish_panel_width()
        self.n_in, (self.dim, self.n_out) = len(first), last[0].shape
        if self.dim % width:
            raise ValueError(f"{self.dim} numbers in a hidden layer: expected a multiple of {width}")
        for tensor in (first, *(tensor for layer in (*hidden, last) for tensor in layer)):
            _check(tensor, *tensor.shape)
        # all layers' panels, then their biases, in one piece of memory
        weights = [first, *(weight for weight, _ in hidden), last[0]]
        sizes = [len(weight) * -(-weight.shape[1] // width) * width for weight in weights]
        biases = [bias for _, bias in hidden] + [last[1]]
        self._memory = first.new_zeros(sum(sizes) + len(hidden) * self.dim + -(-self.n_out // width) * width)
        at = self._memory.data_ptr()
        starts = [at + 4 * sum(sizes[:i]) for i in range(len(sizes) + 1)]
        for i, (weight, start) in enumerate(zip(weights, starts)):
            library.burnish_pack(
                ctypes.c_void_p(weight.data_ptr()),
                *(ctypes.c_long(number) for number in (*weight.shape, *weight.stride())),
                ctypes.c_void_p(start),
                half and 0 < i <= len(hidden),
            )
        torch.cat(biases, out=self._memory[sum(sizes) :][: sum(map(len, biases))])
        self._network = _Network(
            first=starts[0],
            hidden=starts[1],
            last=starts[-2],
            bias=starts[-1],
            last_bias=starts[-1] + 4 * len(hidden) * self.dim,
            n_in=self.n_in,
            dim=self.dim,
            n_hidden=len(hidden),
            n_out=self.n_out,
            residual=residual,
            layer_norm=layer_norm,
            activation=ACTIVATION_CODES[activation],
            half=half,
        )

    def __call__(self, x: Tensor, given: Tensor) -> Tensor:
        """The last layer's outputs (R, n_out).

        Args:
            x: (R, n_in)
            given: added to the first layer's sum, (R / n, H): a row of it for n rows of `x`.
        """
        _check(x, len(x), self.n_in)
        _check(given, len(given), self.dim)
        _check_rows(given, len(x))
        out = x.new_empty(len(x), self.n_out)
        if len(x):
            x, given = x.contiguous(), given.contiguous()
            self._run(
                ctypes.byref(self._network),
                ctypes.c_void_p(x.data_ptr()),
                ctypes.c_long(len(x)),
                ctypes.c_void_p(given.data_ptr()),
                ctypes.c_long(len(x) // len(given)),
                ctypes.c_void_p(out.data_ptr()),
                torch.get_num_threads(),
            )
        return out

    def chain(
        self, transitions: Tensor, noise: Tensor, x: Tensor, mean: Tensor | None, given: Tensor, shifts: Tensor
    ) -> None:
        """T denoising transitions x_{i+1} = mean_i + noise_i, where the network's output is as wide as its inputs (D).

        Args:
            transitions: (T, 6), the source's struct of that name; noisiest first, as everything here.
            noise: (T, R, D), scaled.
            x: the start in x[0] and memory for what follows, (T + 1, R, D); or (1, R, D), only the last x is kept.
            mean: memory for the means (T, R, D), or None.
            given: added to the first layer's sum, (R / n, H): a row of it for n rows of `x`.
            shifts: added there to every row, in each transition another, (T, H).
        """
        steps, rows, width = noise.shape
        for tensor, shape in ((transitions, (steps, 6)), (shifts, (steps, self.dim)), (given, (len(given), self.dim))):
            _check(tensor, *shape)
        for memory, length in ((noise, steps), (x, 1 if len(x) == 1 else steps + 1), (mean, steps)):
            if memory is not None:
                _check(memory, length, rows, self.n_in)
                if not memory.is_contiguous():
                    raise ValueError(f"strides {memory.stride()} of {tuple(memory.shape)}: expected contiguous memory")
        if self.n_out != width:
            raise ValueError(f"{self.n_out} outputs: expected {width}, as many as inputs")
        _check_rows(given, rows)
        if not rows or not steps:
            return
        transitions, given, shifts = transitions.contiguous(), given.contiguous(), shifts.contiguous()
        self._run_chain(
            ctypes.byref(self._network),
            ctypes.c_void_p(transitions.data_ptr()),
            ctypes.c_long(steps),
            ctypes.c_long(rows),
            ctypes.c_void_p(given.data_ptr()),
            ctypes.c_long(rows // len(given)),
            ctypes.c_void_p(shifts.data_ptr()),
            ctypes.c_void_p(noise.data_ptr()),
            ctypes.c_void_p(x.data_ptr()),
            int(len(x) > 1),
            None if mean is None else ctypes.c_void_p(mean.data_ptr()),
            torch.get_num_threads(),
        )


def _check(tensor: Tensor, *shape: int) -> None:
    """Compiled code would take any memory for numbers."""
    if tensor.shape != shape or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"{tensor.dtype} {tuple(tensor.shape)}, {tensor.device}: expected float32 {shape}, cpu")


def _check_rows(given: Tensor, rows: int) -> None:
    if rows and (not len(given) or rows % len(given)):
        raise ValueError(f"{len(given)} rows of given for {rows} of x: expected one for each n rows")


def up_to_date(module: nn.Module, make: Callable[[], T], kind: object = None) -> T:
    """What `make` makes of a module's parameters, kept for each `kind` until one of their numbers changes.

    A digest of all of them tells, in a fraction of the time: torch's own count of changes misses fused optimizers.
    """
    state = _digest([parameter.contiguous() for parameter in module.parameters()])
    kept = _kept.setdefault(module, {})
    if kind not in kept or kept[kind][0] != state:
        kept[kind] = state, make()
    return kept[kind][1]


# not an attribute of the module, which may be copied or saved
_kept: WeakKeyDictionary[nn.Module, dict[object, tuple[int, Any]]] = WeakKeyDictionary()


def _digest(tensors: list[Tensor]) -> int:
    library, n = _library(), len(tensors)
    assert library is not None
    addresses = (ctypes.c_void_p * n)(*[tensor.data_ptr() for tensor in tensors])
    return library.burnish_digest(
        addresses, (ctypes.c_long * n)(*[tensor.numel() for tensor in tensors]), ctypes.c_long(n)
    )


def half_wanted() -> bool:
    """Whether this is under `torch.autocast("cpu", torch.float16)`."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16


def can_compile(weight: Tensor, dim: int, activation: str, half: bool = False) -> bool:
    """Whether a network of this width, activation and kind of weights can run compiled, here and now."""
    if (
        torch.is_grad_enabled()
        or weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or (torch.is_autocast_enabled("cpu") and not half)
        or activation not in ACTIVATION_CODES
        or (library := _library()) is None
    ):
        return False
    return dim % library.burnish_panel_width() == 0 and (not half or has_float16())


def why_not() -> str | None:
    """Why nothing runs compiled on this machine; None if it does."""
    return _load().reason


def level() -> str | None:
    """The instruction set of what runs compiled, of `LEVELS` or `BASELINE`."""
    return _load().level


def levels() -> list[str]:
    """The instruction sets that this processor has, lowest first."""
    found, possible = _flags(), [BASELINE]
    for name, needed in LEVELS.items():
        if not found.issuperset(needed):
            break
        possible.append(name)
    return possible


def has_float16() -> bool:
    """Whether float16 can be asked for here (`half_wanted`)."""
    library = _load().library
    return library is not None and bool(library.burnish_has_float16())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library; why there is none is said once, unless that was asked for."""
    loaded = _load()
    if loaded.reason and loaded.reason != SWITCHED_OFF:
        print(f"burnish: networks run without compiled code, more slowly: {loaded.reason}", file=sys.stderr)
    return loaded.library


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    level: str | None
    reason: str | None  # why there is none


@functools.cache
def _load() -> _Loaded:
    """The library of the level that is asked for, or of the highest that processor and compiler have."""
    asked = os.environ.get(SWITCH) or "1"
    if asked == "0":
        return _Loaded(None, None, SWITCHED_OFF)
    if asked != "1" and asked not in levels():
        return _Loaded(None, None, f"{SWITCH}={asked}: this processor knows 0, 1, {', '.join(levels())}")
    reason = None
    for name in levels()[::-1] if asked == "1" else [asked]:
        try:
            return _Loaded(load(name, shlex.split(os.environ.get("CXX", "")) or ["c++"]), name, None)
        except OSError as error:  # a compiler that does not know the level, or cannot do any
            reason = str(error)
        except (RuntimeError, ValueError, subprocess.SubprocessError) as error:  # no home folder, CXX="'"
            return _Loaded(None, None, str(error))
    return _Loaded(None, None, reason)


def load(level: str, compiler: Sequence[str], tuning: str = "native") -> ctypes.CDLL:
    """The library for one of `levels`, compiled now if there is none for this source, compiler and processor.

    Args:
        compiler: the words of its command.
        tuning: the processor that x86's code shall be fast on; decides no bit.

    Raises:
        OSError, RuntimeError, ValueError, subprocess.SubprocessError: no compiler, one that fails, nowhere to write.
    """
    library = ctypes.CDLL(str(_built(compiler, (*FLAGS, *_level_flags(level, tuning)))))
    library.burnish_digest.restype = ctypes.c_uint64
    return library


def _level_flags(level: str, tuning: str) -> list[str]:
    """Feature by feature: a compiler may know AVX-512 and not the name x86-64-v4."""
    if platform.machine().lower() not in X86:
        return []
    names = [] if level == BASELINE else list(LEVELS)[: list(LEVELS).index(level) + 1]
    features = [feature for name in names for feature in LEVELS[name]]
    spelled = {"sse4_2": "sse4.2", "bmi1": "bmi", "avx512_fp16": "avx512fp16"}  # as compilers do
    return [f"-mtune={tuning}", *(f"-m{spelled.get(feature, feature)}" for feature in features)]


def _built(compiler: Sequence[str], flags: Sequence[str]) -> Path:
    """The compiled file. Raises as `load` does."""
    found = shutil.which(compiler[0])
    if found is None:
        raise OSError(f"no C++ compiler {compiler[0]}")
    version = Path(found).resolve().stat()
    identity = [*compiler, str(version.st_size), str(version.st_mtime_ns), *flags, _processor()]
    key = hashlib.sha256("\n".join(identity).encode() + SOURCE.read_bytes()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"
    built = folder / f"mlp-{key[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:  # another process may be compiling, too
            made = Path(temporary) / built.name
            _compile(compiler, flags, made)
            with made.open("rb") as file:
                os.fsync(file)  # a file that is cut short would end every later process
            made.replace(built)
    return built


def _compile(compiler: Sequence[str], flags: Sequence[str], made: Path) -> None:
    """With OpenMP, or where the compiler has none (Apple's), for one thread."""
    for chosen in (flags, [flag for flag in flags if flag != "-fopenmp"]):
        command = [*compiler, *chosen, "-o", str(made), str(SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not result.returncode:
            return
    said = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[0]
    raise OSError(f"{compiler[0]}: {said}")


X86 = ("x86_64", "amd64")


@functools.cache
def _flags() -> frozenset[str]:
    """What an x86 processor, and its system, can do, as Linux spells it; of another architecture nothing."""
    if platform.machine().lower() not in X86:
        return frozenset()
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # macOS
        command = ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        told = "flags: " + " ".join(told.lower().replace("sse4.2", "sse4_2").split())
    return frozenset(next((line for line in told.splitlines() if line.startswith("flags")), "").split())


def _processor() -> str:
    """What the processor can do: a home folder may be shared by different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = ("flags", "Features", "model name", "isa", "cpu\t")  # x86, ARM, both, RISC-V, POWER
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(told)})])
