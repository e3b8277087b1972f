"""One robot made different from the next."""

from typing import Any

import numpy as np

from robopolicy.sim.quadruped.batch import TRUNK
from robopolicy.sim.quadruped.config import RandomisationConfig


def randomise(model: Any, config: RandomisationConfig, rng: np.random.Generator) -> None:
    """Draws ground friction, payload, centre of mass and gains of `model` (`mujoco.MjModel`) in place.

    The payload scales the trunk's inertia with its mass.
    """
    import mujoco

    ground = model.geom("ground").id
    model.geom_friction[ground, 0] = rng.uniform(*config.friction)
    mass = model.body_mass[TRUNK]
    heavier = (mass + rng.uniform(*config.payload)) / mass
    model.body_mass[TRUNK] *= heavier
    model.body_inertia[TRUNK] *= heavier
    model.body_ipos[TRUNK] += rng.uniform(-config.com_shift, config.com_shift, 3)
    kp, kd = rng.uniform(*config.gains, 2)
    model.actuator_gainprm[:, 0] *= kp
    model.actuator_biasprm[:, 1] *= kp
    model.actuator_biasprm[:, 2] *= kd
    # Quantities that MuJoCo derives from masses when it compiles a model.
    mujoco.mj_setConst(model, mujoco.MjData(model))
