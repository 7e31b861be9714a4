"""The state of a training as plain data: in a file, and of the random generators."""

from __future__ import annotations

import math
import random
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from burnish.errors import BurnishError
from burnish.foreign import cause, one_line
from burnish.machine.checksums import Damaged

_ARRAY = "__ndarray__"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors, numpy arrays, numbers, strings, None, and dict, list or tuple of them.

    Raises TypeError for anything else, so that what is written can always be read by `load_state`, and OSError where
    the disk refuses.
    """
    encoded = _encode(state)
    with Path(path).open("wb") as file:
        told: Any = _Told(file)
        try:
            torch.save(encoded, told)
        except RuntimeError as error:  # torch does not say why it could not write
            raise told.refused or error from error


class _Told:
    """A file for torch, which keeps what the disk refused."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.refused: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU; never runs code from the file.

    Raises BurnishError when the file is missing, damaged (then Damaged), or holds anything but plain data.
    """
    path = Path(path)
    verify_state(path)
    try:
        return _decode(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        raise BurnishError(
            f"{path} is damaged or not a checkpoint's state ({cause(error)}): use another one"
        ) from error


def verify_state(path: Path) -> None:
    """Raise Damaged where the file is missing, or one of its records is not what its checksum, CRC-32, says.

    torch writes these checksums and does not look at them.
    """
    if not path.is_file():
        raise Damaged(f"{path} does not exist: expected the state of a checkpoint")
    try:
        with zipfile.ZipFile(path) as file:
            record = file.testzip()
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        raise Damaged(f"{path} is damaged or not a checkpoint's state ({cause(error)}): use another one") from error
    if record is not None:
        raise Damaged(f"{path} is damaged (the checksum of its record {record} is wrong): use another one")


def _encode(value: Any) -> Any:
    """numpy arrays as raw bytes in a tensor: `weights_only` reads tensors, of any numpy version."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("cannot save a numpy array of objects")
        raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), dtype=np.uint8)
        dtype: Any = np.lib.format.dtype_to_descr(value.dtype)  # text, or of records a list of their fields
        return {_ARRAY: torch.from_numpy(raw.copy()), "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_encode(item) for item in value)
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, bytes)):
        return value
    raise TypeError(f"cannot save a {type(value).__name__}: expected tensors, arrays, numbers, strings or dict/list")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            raw = value[_ARRAY].numpy().tobytes()
            dtype = np.lib.format.descr_to_dtype(value["dtype"])
            return np.frombuffer(raw, dtype=dtype).reshape(value["shape"]).copy()
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_decode(item) for item in value)
    return value


def require_alike(found: Any, example: Any, where: str) -> None:
    """Hold a loaded state against that of something just made, whose values are others, but not their kinds.

    Lists, and the first dimension of arrays, may have other lengths; a key may be missing or new (another version's);
    what is None or empty in `example` tells nothing. Flags of optimizers decide what they keep, and are the same.

    Raises:
        BurnishError: beginning with `where`, for a value of another kind, or an array of other dimensions.
    """
    if example is None:
        return
    if isinstance(example, dict) and isinstance(found, dict):
        for name in example.keys() & found.keys():
            require_alike(found[name], example[name], f"{where}.{name}")
        if "param_groups" in example and "param_groups" in found:
            _require_same_flags(found["param_groups"], example["param_groups"], f"{where}.param_groups")
        return
    if isinstance(example, (list, tuple)) and isinstance(found, (list, tuple)):
        for i, item in enumerate(found if example else []):
            require_alike(item, example[min(i, len(example) - 1)], f"{where}[{i}]")
        return
    kinds = [_kind(each) for each in (found, example)]
    if kinds[0] != kinds[1] and kinds != ["int", "float"]:
        raise BurnishError(f"{where} is {kinds[0]}, expected {kinds[1]}")


def _kind(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        beyond = "".join(f", {n}" for n in value.shape[1:])
        fields = getattr(value.dtype, "fields", None)  # of records; how they are aligned is no other kind
        dtype = {name: str(field[0]) for name, field in fields.items()} if fields else value.dtype
        return f"{type(value).__name__} of {dtype}, {f'(...{beyond})' if value.ndim else 'one number'}"
    if isinstance(value, np.generic):
        value = value.item()
    return type(value).__name__


def _require_same_flags(found: list[dict[str, Any]], example: list[dict[str, Any]], where: str) -> None:
    for ours, own in zip(found, example, strict=True):
        for name, value in own.items():
            flag = value is None or isinstance(value, bool)
            if name in ours and (ours[name] is not value if flag else not _finite(ours[name])):
                raise BurnishError(f"{where}.{name} is {one_line(str(ours[name]), 40)}, expected such as {value}")


def _finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """A generator's state, and the kind of device it is for."""
    return {"device": generator.device.type, "state": generator.get_state()}


def restore_generator(generator: torch.Generator, saved: dict[str, Any]) -> None:
    """Go on where `generator_state` was; on another kind of device the generator's stream starts at its seed."""
    if generator.device.type == saved["device"]:
        generator.set_state(saved["state"])


def random_states() -> dict[str, Any]:
    """The global random generators of python, numpy and torch, for `save_state`."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - robosuite and robomimic draw from the legacy global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo what was drawn since `random_states()`; CUDA's only where there are as many devices as then."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
