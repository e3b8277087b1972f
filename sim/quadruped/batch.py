"""Physics of N robots at once: one interface, a reference loop, and MuJoCo's threaded rollout in C.

Both give the same numbers. A control step is `substeps` physics steps with a target per physics step (a delayed
action changes it half way) and one force on the trunk. Every control step starts the contact solver afresh and not
from what it happened to leave behind (which is measurably no slower): a step is a function of the state alone,
whichever thread runs it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from robopolicy.errors import RobopolicyError, unknown

Backend = Literal["rollout", "loop"]
BACKENDS: tuple[Backend, ...] = ("rollout", "loop")
TRUNK = 1
"""Number of the trunk's body."""


class Batch:
    """N models of equal sizes, each with its own parameters, and their present states."""

    def __init__(
        self, models: Sequence[Any], substeps: int, backend: Backend = "rollout", threads: int | None = None
    ) -> None:
        """`threads` is for `rollout`; None takes one per usable processor."""
        import mujoco
        from mujoco.rollout import Rollout

        if backend not in BACKENDS:
            raise unknown("physics backend", backend, BACKENDS)
        if threads is not None and threads < 1:
            raise RobopolicyError(f"threads must be at least 1, got {threads}")
        first = models[0]
        full, trunk_force = mujoco.mjtState.mjSTATE_FULLPHYSICS.value, mujoco.mjtState.mjSTATE_XFRC_APPLIED.value
        self._full, self._spec = full, mujoco.mjtState.mjSTATE_CTRL.value | trunk_force
        self.models, self.substeps, self.backend = list(models), substeps, backend
        n = len(self.models)
        self.states = np.zeros((n, substeps, mujoco.mj_stateSize(first, full)))
        """After each physics step of the last control step, [N, substeps, 1 + nq + nv]: time, qpos, qvel."""
        self.sensors = np.zeros((n, substeps, first.nsensordata))
        """As each physics step computed them, that is for the state before it, [N, substeps, nsensordata]."""
        self.controls = np.zeros((n, substeps, mujoco.mj_stateSize(first, self._spec)))
        """All inputs of the coming control step, of which `targets` and `forces` are parts."""
        self.targets = self.controls[:, :, : first.nu]
        """The actuators' inputs for the coming control step, [N, substeps, nu]; `step` reads them."""
        # Six numbers per body follow the actuators' inputs, force before torque, in the world frame.
        start = first.nu + 6 * TRUNK
        self.forces = self.controls[:, :, start : start + 3]
        """On the trunk's centre of mass in the world frame, N, [N, substeps, 3]; `step` reads them."""
        self._initial = np.zeros((n, self.states.shape[2]))
        if backend == "rollout":
            self.threads = min(threads or _processors(), n)
            self._datas = [mujoco.MjData(first) for _ in range(self.threads)]
            # A pool of one thread would only add a hand-over.
            self._pool = Rollout(nthread=self.threads if self.threads > 1 else 0)
        else:
            self.threads = 1
            self._datas = [mujoco.MjData(m) for m in self.models]
        for data, model in zip(self._datas, self.models, strict=False):
            mujoco.mj_getState(model, data, self._initial[0], full)
        self.place(np.arange(n), np.repeat(self._initial[:1], n, axis=0))

    @property
    def present(self) -> np.ndarray:
        """The present states [N, 1 + nq + nv]: time, qpos, qvel. A view: `place` changes them."""
        return self.states[:, -1]

    def place(self, rows: np.ndarray, states: np.ndarray) -> None:
        """Puts robots `rows` [K] into `states` [K, 1 + nq + nv], without history and without force."""
        self.states[rows] = states[:, None]
        self.sensors[rows] = 0
        self.forces[rows] = 0

    def step(self) -> None:
        """One control step of `targets` and `forces`; `states` and `sensors` hold what came of it."""
        import mujoco

        self._initial[:] = self.states[:, -1]
        # MuJoCo would write of failed physics into a file in the working directory; the caller sees it in `states`.
        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(_ignore)
        try:
            self._advance()
        finally:
            mujoco.set_mju_user_warning(handler)

    def _advance(self) -> None:
        if self.backend == "rollout":
            self._pool.rollout(
                self.models,
                self._datas,
                self._initial,
                self.controls,
                control_spec=self._spec,
                skip_checks=True,
                nstep=self.substeps,
                state=self.states,
                sensordata=self.sensors,
            )
        else:
            self._loop()

    def _loop(self) -> None:
        import mujoco

        for i, (model, data) in enumerate(zip(self.models, self._datas, strict=True)):
            mujoco.mj_setState(model, data, self._initial[i], self._full)
            data.qacc_warmstart[:] = 0
            for k in range(self.substeps):
                data.ctrl[:] = self.targets[i, k]
                data.xfrc_applied[:] = 0
                data.xfrc_applied[TRUNK, :3] = self.forces[i, k]
                mujoco.mj_step(model, data)
                mujoco.mj_getState(model, data, self.states[i, k], self._full)
                self.sensors[i, k] = data.sensordata

    def close(self) -> None:
        """Ends the threads."""
        if self.backend == "rollout":
            self._pool.close()


def _ignore(message: str) -> None:
    pass


def _processors() -> int:
    import os

    return len(os.sched_getaffinity(0))
