"""The operational-space controller (Khatib 1987) between MuJoCo's substeps, in compiled code.

The torques are those of robosuite 1.5's `OperationalSpaceController.run_controller`:

    tau = J^T [Lambda_pos F; Lambda_ori T] + bias + N^T tau_0
    F = kp (x_goal - x) - kd v        T = kp e(R_goal, R) - kd w

from robosuite's own compiled functions, on arrays of the same memory layout and in the same order, so that they are
equal bit by bit. What is saved is the Python around them. An error that MuJoCo itself finds fatal (an arena too small
for the contacts) ends the process here, where its Python binding raises.

Symbols: A arms, J joints of an arm, nv degrees of freedom of the model.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numpy as np
from numba import njit, types
from numba.core.typing import signature
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

_FOLDER = Path(mujoco.__file__).parent
_LIBRARIES = [*_FOLDER.glob("libmujoco*.so*"), *_FOLDER.glob("libmujoco*.dylib"), *_FOLDER.glob("mujoco.dll")]
if not _LIBRARIES:
    raise ImportError(f"no MuJoCo library in {_FOLDER}")
_LIBRARY = ctypes.CDLL(str(_LIBRARIES[0]))  # the one that is loaded already


def _function(name: str, address: int | None, kind: Any) -> Any:
    """For compiled code: the function at an address, under a name of our own. So the code can be cached on disk, other
    than with ctypes' functions, and stays valid when a library moves."""
    llvmlite.binding.add_symbol(f"burnish_{name}", address)
    return types.ExternalFunction(f"burnish_{name}", kind)


def _mujocos(name: str, *kinds: Any) -> Any:
    return _function(name, ctypes.cast(_LIBRARY[name], ctypes.c_void_p).value, signature(types.void, *kinds))


_Address, _Doubles = types.intp, types.CPointer(types.float64)
_mj_step1 = _mujocos("mj_step1", _Address, _Address)
_mj_step2 = _mujocos("mj_step2", _Address, _Address)
_mj_jac_site = _mujocos("mj_jacSite", _Address, _Address, _Doubles, _Doubles, types.int32)
_mj_full_m = _mujocos("mj_fullM", _Address, _Doubles, _Doubles)
_dgemv_type = signature(
    *(types.void, types.int32, types.int32, types.int64, types.int64, types.float64, _Doubles, types.int64),
    *(_Doubles, types.int64, types.float64, _Doubles, types.int64),
)
_ROWS, _COLUMNS, _NOT_TRANSPOSED = 101, 102, 111  # of CBLAS


def _numpys_dgemv() -> int:
    """The address of the matrix-vector product in the BLAS that numpy's wheels bring. Raises ImportError without it:
    equal to rounding is not enough, contacts amplify the difference."""
    for path in (Path(np.__file__).parents[1] / "numpy.libs").glob("*openblas*"):
        library = ctypes.CDLL(str(path))
        for name in ("cblas_dgemv64_", "scipy_cblas_dgemv64_"):
            if hasattr(library, name):
                return int(ctypes.cast(library[name], ctypes.c_void_p).value or 0)
    raise ImportError("the BLAS of numpy's own wheels, whose sums the compiled step repeats, is not there")


_dgemv = _function("dgemv", _numpys_dgemv(), _dgemv_type)


@njit(cache=True, nogil=True)
def _times(A, order, x):
    """A x as numpy computes it: numba's own is that of scipy's BLAS, which adds in another order."""
    m, n = A.shape
    y = np.zeros(m)
    lead = n if order == _ROWS else m
    _dgemv(order, _NOT_TRANSPOSED, m, n, 1.0, A.ctypes, lead, x.ctypes, 1, 0.0, y.ctypes, 1)
    return y


@njit(cache=True, nogil=True)
def control(n, begun, simulation, state, layout, goal, gains, work):
    """`n` substeps towards the goals; where the first has `begun`, its mj_step1 is done.

    Args:
        simulation: addresses of MjModel and MjData.
        state: MjData's site_xpos, site_xmat, qpos, qvel, qM, qfrc_bias, ctrl (written).
        layout: site (A,), qpos, qvel and actuator indices (A, J), torque limits (A, J) twice.
        goal: position (A, 3) and orientation (A, 3, 3) in the world, posture (A, J).
        gains: kp, kd (A, 6).
        work: two Jacobians (3, nv) and a mass matrix (nv, nv) for MuJoCo to write into.
    """
    model, data = simulation
    site_xpos, site_xmat, qpos, qvel, packed_mass, bias, ctrl = state
    sites, qpos_index, qvel_index, actuators, low, high = layout
    goal_pos, goal_ori, posture = goal
    kp, kd = gains
    jac_pos, jac_ori, mass = work
    n_arms, n_joints = qvel_index.shape
    J = np.empty((6, n_joints))
    M = np.empty((n_joints, n_joints)).T  # in Fortran's order, as robosuite's indexing leaves it
    wrench = np.empty(6)
    for substep in range(n):
        if substep > 0 or not begun:
            _mj_step1(model, data)
        _mj_full_m(model, mass.ctypes, packed_mass.ctypes)
        for arm in range(n_arms):
            x = site_xpos[sites[arm]]
            R = site_xmat[sites[arm]].reshape(3, 3)
            dofs = qvel_index[arm]
            _mj_jac_site(model, data, jac_pos.ctypes, jac_ori.ctypes, sites[arm])
            for j in range(n_joints):
                for i in range(3):
                    J[i, j] = jac_pos[i, dofs[j]]
                    J[3 + i, j] = jac_ori[i, dofs[j]]
                for i in range(n_joints):
                    M[i, j] = mass[dofs[i], dofs[j]]
            force = (goal_pos[arm] - x) * kp[arm, :3] + -_times(jac_pos, _ROWS, qvel) * kd[arm, :3]
            torque = orientation_error(goal_ori[arm], R) * kp[arm, 3:] + -_times(jac_ori, _ROWS, qvel) * kd[arm, 3:]
            _, lambda_pos, lambda_ori, nullspace = opspace_matrices(M, J, J[:3].copy(), J[3:].copy())
            wrench[:3] = _times(lambda_pos, _COLUMNS, force)
            wrench[3:] = _times(lambda_ori, _COLUMNS, torque)
            torques = _times(J.T, _COLUMNS, wrench) + bias[dofs]
            torques += nullspace_torques(M, nullspace, posture[arm], qpos[qpos_index[arm]], qvel[dofs])
            for j in range(n_joints):
                ctrl[actuators[arm, j]] = min(max(torques[j], low[arm, j]), high[arm, j])
        _mj_step2(model, data)
