"""`burnish doctor`: does this installation work, and what would make it work."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from burnish.errors import BurnishError

OK, MISSING, BROKEN = "ok", "missing", "BROKEN"

CORE = ("torch", "torchvision", "mujoco", "robosuite", "robomimic", "gymnasium", "numpy")
EXTRAS = {"minari": "minari", "envpool": "envpool", "stable-baselines3": "baselines"}

RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 64) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the image is black"
"""


class Diagnosis(NamedTuple):
    """One line: `level` OK, MISSING (something optional) or BROKEN (the core does not work)."""

    level: str
    subject: str
    detail: str


def doctor() -> int:
    """Print what is here and what is not -> exit status, 0 if the core works."""
    broken = 0
    for diagnosis in diagnoses():
        print(f"{diagnosis.level:<8}{diagnosis.subject:<20}{diagnosis.detail}", flush=True)
        broken += diagnosis.level == BROKEN
    print("the core works" if not broken else f"{broken} of the core's parts do not work: see BROKEN above")
    return 1 if broken else 0


def diagnoses() -> Iterator[Diagnosis]:
    """All checks, one after another (the simulators take some seconds)."""
    yield _python()
    yield from _packages()
    yield _torch()
    yield _compiled()
    yield _rendering()  # before robosuite is imported: that sets MUJOCO_GL
    yield from _simulators()
    yield from _machine()


def _python() -> Diagnosis:
    version = platform.python_version()
    right = (3, 10) <= sys.version_info[:2] < (3, 13)
    detail = f"{version}, {platform.system()} {platform.machine()}"
    return Diagnosis(OK, "python", detail) if right else Diagnosis(BROKEN, "python", f"{detail}: expected 3.10 to 3.12")


def _packages() -> Iterator[Diagnosis]:
    for name in CORE:
        found = _version(name)
        yield Diagnosis(OK, name, found) if found else Diagnosis(BROKEN, name, "install it with: make install")
    for name, extra in EXTRAS.items():
        found = _version(name)
        yield Diagnosis(OK, name, found) if found else Diagnosis(MISSING, name, f"pip install -e '.[{extra}]'")
    if _version("robomimic") is None and shutil.which("cmake") is None:
        yield Diagnosis(
            BROKEN,
            "cmake",
            "robomimic's egl_probe is built with it: install cmake and a C++ compiler, then again",
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Diagnosis:
    try:
        import torch

        torch.ones(2, 2) @ torch.ones(2, 2)
        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            return Diagnosis(OK, "device", f"CPU ({built}; no GPU that it can use)")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        torch.ones(1, device="cuda").sum().item()
        return Diagnosis(OK, "device", ", ".join(names))
    except Exception as error:  # a broken driver or a wrong build shows in many ways
        return Diagnosis(BROKEN, "device", _one_line(error))


def _compiled() -> Diagnosis:
    from burnish.networks.compiled import mlp as compiled_mlp

    reason = compiled_mlp.why_not()
    if reason is None:
        half = "with" if compiled_mlp.has_float16() else "without"
        built = f"built by this machine's C++ compiler for {compiled_mlp.level()}, {half} float16"
        return Diagnosis(OK, "compiled networks", built)
    return Diagnosis(MISSING, "compiled networks", f"torch's operations run instead, more slowly: {reason}")


def _simulators() -> Iterator[Diagnosis]:
    for name in ("hopper", "lift"):
        try:
            from burnish.commands.tasks import try_task
            from burnish.envs.task import load_task

            problem = try_task(load_task(name))
        except (ImportError, BurnishError) as error:
            problem = _one_line(error)
        yield (
            Diagnosis(BROKEN, f"task={name}", problem) if problem else Diagnosis(OK, f"task={name}", "makes and steps")
        )


def _rendering() -> Diagnosis:
    """In processes of their own: the choice of OpenGL is made once, and a wrong driver may crash."""
    chosen = os.environ.get("MUJOCO_GL")
    reasons = []
    for backend in [chosen] if chosen else ["egl", "osmesa"]:
        problem = _try_rendering(backend)
        if problem is None:
            return Diagnosis(OK, "rendering", f"draws offscreen with MUJOCO_GL={backend}")
        reasons.append(f"MUJOCO_GL={backend}: {problem[:80]}")
    advice = "only videos need it: install the Debian package libegl1 (or libosmesa6, and set MUJOCO_GL=osmesa)"
    return Diagnosis(MISSING, "rendering", "; ".join([*reasons, advice]))


def _try_rendering(backend: str) -> str | None:
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        result = subprocess.run(
            [sys.executable, "-c", RENDER],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no answer in 120 s"
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f"ended with status {result.returncode}"])[-1]


def _machine() -> Iterator[Diagnosis]:
    import psutil

    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Diagnosis(OK, "CPUs", f"{n_cpus} usable, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Diagnosis(OK if free > 2 else MISSING, "disk", f"{free:.0f} GiB free here")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
