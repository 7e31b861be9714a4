"""What to do where MuJoCo's choice of OpenGL does not work, which its import, or the first picture, tells."""

from __future__ import annotations

import os

OPENGL = "; set MUJOCO_GL=egl (Debian package libegl1) or MUJOCO_GL=osmesa (libosmesa6) before starting"


def opengl_advice() -> str:
    """The end of a message; empty where the user has chosen nothing that could be wrong."""
    chosen = os.environ.get("MUJOCO_GL")
    if chosen is None:
        return ""
    return (
        f"; MUJOCO_GL={chosen} is set: unset it, or install what it needs (egl: the Debian package libegl1, osmesa: "
        "libosmesa6)"
    )
