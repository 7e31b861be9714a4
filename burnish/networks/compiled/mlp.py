"""A small MLP's pass without gradients as compiled code (mlp.cpp): products, activations and biases of a block
of rows in one call, where torch makes a dozen passes over memory and as many calls; or a whole denoising chain of them.

It is compiled once for a machine, by its C++ compiler, into the user's cache folder; without a compiler torch's
operations do the same, more slowly, and other bits come out. A row's result depends on that row alone, bit for bit,
whatever the number of rows and threads.

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
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

T = TypeVar("T")

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC")
ACTIVATION_CODES = {"relu": 0, "mish": 1}  # the source's enum
SWITCH = "BURNISH_COMPILED"  # environment variable; 0: torch's operations
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
    return _load()[1]


def has_float16() -> bool:
    """Whether float16 can be asked for here (`half_wanted`)."""
    library, _ = _load()
    return library is not None and bool(library.burnish_has_float16())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library; why there is none is said once, unless that was asked for."""
    library, reason = _load()
    if reason and reason != SWITCHED_OFF:
        print(f"burnish: networks run without compiled code, more slowly: {reason}", file=sys.stderr)
    return library


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get(SWITCH, "1") == "0":
        return None, SWITCHED_OFF
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:  # no home folder, CXX="'"
        return None, str(error)
    library.burnish_digest.restype = ctypes.c_uint64
    return library, None


def _built() -> Path:
    """The compiled file, made now if there is none for this source, compiler and processor.

    Raises:
        OSError, RuntimeError, ValueError, subprocess.SubprocessError: no compiler, one that fails, nowhere to write.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    found = shutil.which(compiler[0])
    if found is None:
        raise OSError(f"no C++ compiler {compiler[0]}")
    version = Path(found).resolve().stat()
    identity = [*compiler, str(version.st_size), str(version.st_mtime_ns), *FLAGS, _processor()]
    key = hashlib.sha256("\n".join(identity).encode() + SOURCE.read_bytes()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"
    built = folder / f"mlp-{key[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:  # another process may be compiling, too
            made = Path(temporary) / built.name
            _compile(compiler, made)
            with made.open("rb") as file:
                os.fsync(file)  # a file that is cut short would end every later process
            made.replace(built)
    return built


def _compile(compiler: list[str], made: Path) -> None:
    """With OpenMP, or where the compiler has none (Apple's), for one thread."""
    for flags in (FLAGS, [flag for flag in FLAGS if flag != "-fopenmp"]):
        command = [*compiler, *flags, "-o", str(made), str(SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not result.returncode:
            return
    said = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[0]
    raise OSError(f"{compiler[0]}: {said}")


def _processor() -> str:
    """What the processor can do: a home folder may be shared by different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = ("flags", "Features", "model name", "isa", "cpu\t")  # x86, ARM, both, RISC-V, POWER
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(told)})])
