"""robosuite's environments. Nothing here works without MuJoCo, whose import fails with a wrong MUJOCO_GL."""

from burnish.envs.opengl import opengl_advice
from burnish.foreign import told_as

with told_as("MuJoCo cannot be imported", opengl_advice()):
    import mujoco  # noqa: F401
