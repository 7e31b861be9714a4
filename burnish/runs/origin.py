"""Where numbers come from - commit, versions, machine - without telling paths or names of this computer."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from burnish.networks.compiled.mlp import why_not

PACKAGES = ("burnish", "torch", "numpy", "mujoco", "robosuite", "gymnasium", "stable-baselines3", "rliable")
ABSOLUTE = re.compile(r"(?<![\w.…~/])/(?:[^\s'\",;:()\[\]/]+/)*([^\s'\",;:()\[\]/]+)/?")


def without_names(text: str) -> str:
    """Text without absolute paths (their last part stays) and without this computer's name."""
    for known, instead in ((str(Path.cwd()), "."), (str(Path.home()), "~")):
        if len(known) > 1:
            text = text.replace(known, instead)
    text = ABSOLUTE.sub(r"…/\1", text)
    host = platform.node()
    return re.sub(rf"\b{re.escape(host)}\b", "(this computer)", text) if len(host) > 2 else text


def commit(root: Path | None = None) -> str:
    """The git commit of this Burnish, and whether files differ from it; said where there is none to be found."""
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return "unknown (not run from a git checkout)"
    try:
        found = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return "unknown (git does not answer)"
    return found + (f", with {len(changed.splitlines())} changed or new files" if changed else ", nothing changed")


def versions() -> dict[str, str]:
    """Of Python, Burnish and what it stands on, as far as it is installed."""
    found = {"python": platform.python_version(), "burnish": "0+unknown"}  # the latter: a checkout on PYTHONPATH
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Origin(NamedTuple):
    """What belongs beside every number; its fields are the keys in files. Older files do not tell all of it."""

    commit: str
    versions: dict[str, str]
    machine: str
    compiled_networks: bool | None  # whether the machine can compile small networks


def origin() -> Origin:
    """Of what is computed now, here."""
    return Origin(commit(), versions(), machine(), why_not() is None)


def machine() -> str:
    """CPU, cores, memory, system."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_cpu()}, {n_cpus} usable cores, {memory:.0f} GiB of memory, {_system()}"


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
