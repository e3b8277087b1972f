"""Recorded arrays in the keys of robomimic's tasks: the orders of two robosuite versions, and delta to absolute."""

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.errors import DataError
from robopolicy.features import ACTION, EXECUTED, Feature, FeatureSpec
from robopolicy.sim.robosuite_env import ARM, default_env_args, load_robosuite, make_environment, matrix_to_rot6d

if TYPE_CHECKING:
    from robopolicy.sim.robomimic_task import RobomimicTask, Scene

OBJECT, STATES = "observation.object", "simulator.state"
LAG = 0.1
"""Distance in m that a relative pose may be off: robosuite 1.5 takes the object's pose of one step before."""


def adapt(
    task: type["RobomimicTask"], arrays: dict[str, np.ndarray], features: FeatureSpec
) -> tuple[dict[str, np.ndarray], FeatureSpec]:
    """`RobomimicTask.adapt` of a variant."""
    adapted, specs = dict(arrays), {f.key: f for f in features}
    scene, hand = task.scene, arrays.get("observation.robot0_eef_pos")
    names = scene.object_names()
    found = specs.get(OBJECT)
    if found is not None and hand is not None and found.shape == (len(names),) and found.names != names:
        adapted[OBJECT] = present_objects(scene, arrays[OBJECT], hand)
        specs[OBJECT] = replace(found, names=names)
    for key in (ACTION, EXECUTED):
        if key in arrays and key in specs:
            converted = _actions(task, arrays, specs[key])
            if converted is not None:
                adapted[key] = converted.astype(np.float32)
                specs[key] = replace(task.features.action, key=key)
    return adapted, replace(features, features=tuple(specs.values()))


def present_objects(scene: "Scene", objects: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """`observation.object` [N, D] of either robosuite version in the order and with the signs of 1.5.

    `hand` [N, 3] is the position of the first robot's grip site. Version 1.4 said poses in the world before those in
    the hand, the two flags of transport last, and for lift hand minus cube instead of cube minus hand.
    """
    former = _present_of_former(scene, objects)
    candidates = [(_mismatch(scene, values, hand), values) for values in (objects, former)]
    # Without a row to judge by there is nothing to lose.
    mismatch, values = min(candidates, key=lambda c: c[0])
    if mismatch > LAG:
        raise DataError(
            f"{OBJECT!r}: relative and absolute positions are {mismatch:.2g} m apart whether the order is that of "
            f"robosuite 1.4 or 1.5; expected an object vector of {scene.env_name}"
        )
    return values


def _present_of_former(scene: "Scene", objects: np.ndarray) -> np.ndarray:
    values = objects.copy()
    if scene.env_name == "Lift":
        values[:, scene.where("gripper_to_cube_pos")] *= -1
    elif scene.env_name == "TwoArmTransport":
        first = scene.where("payload_in_target_bin").start
        values[:, first:] = np.roll(objects[:, first:], 2, axis=1)
    else:
        for start in range(0, 14 * (len(scene.object_names()) // 14), 14):
            values[:, start : start + 14] = np.roll(objects[:, start : start + 14], 7, axis=1)
    return values


def _mismatch(scene: "Scene", objects: np.ndarray, hand: np.ndarray) -> float:
    """Median distance in m between what relative and absolute positions say about the first object."""
    relative = {"Lift": "gripper_to_cube_pos", "TwoArmTransport": "gripper0_to_payload"}.get(scene.env_name)
    said = objects[:, scene.where(relative or scene.objects[0][0])].astype(np.float64)
    # After a reset robosuite 1.5 says 0 for what is relative.
    rows = (said != 0).any(axis=1)
    if not rows.any():
        return 0.0
    expected = objects[rows, scene.first_position()].astype(np.float64) - hand[rows]
    if relative is None:
        # In the hand's own frame only the distance is comparable.
        return float(np.median(np.abs(np.linalg.norm(said[rows], axis=1) - np.linalg.norm(expected, axis=1))))
    return float(np.median(np.linalg.norm(said[rows] - expected, axis=1)))


def _actions(task: type["RobomimicTask"], arrays: dict[str, np.ndarray], feature: Feature) -> np.ndarray | None:
    """Recorded actions [N, D_a] as this variant takes them; None where they cannot or need not be converted."""
    control, scene = feature.control, task.scene
    if control is None or (control.target, control.rotation) != ("end_effector_pose", "axis_angle"):
        return None
    if feature.shape != (7 * scene.robots,) or control.frame not in ("world", "base"):
        return None
    arms = np.asarray(arrays[feature.key], dtype=np.float64).reshape(-1, scene.robots, 7)
    if control.mode == "delta":
        if control.frame == "base":
            arms = _turned(arms, scene.base_yaw)
        if not task.absolute:
            return arms.reshape(len(arms), -1)
        return poses_of_deltas(task, arms, arrays[STATES]) if STATES in arrays else None
    if not task.absolute or control.frame == "base":
        return None
    return _with_rot6d(arms[..., :3], arms[..., 3:6], arms[..., 6:])


def _turned(arms: np.ndarray, yaw: tuple[float, ...]) -> np.ndarray:
    """Deltas [N, R, 7] of bases that are turned by `yaw` in the frame of the world."""
    turned = arms.copy()
    for i, angle in enumerate(yaw):
        rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        turned[:, i, :3], turned[:, i, 3:6] = arms[:, i, :3] @ rotation.T, arms[:, i, 3:6] @ rotation.T
    return turned


def _with_rot6d(position: np.ndarray, rotation_vector: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Absolute actions [N, 10 R] from parts [N, R, 3], [N, R, 3] and [N, R, 1]."""
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_rotvec(rotation_vector.reshape(-1, 3)).as_matrix()
    six = matrix_to_rot6d(matrices).reshape(*position.shape[:2], 6)
    return np.concatenate([position, six, gripper], axis=2).reshape(len(position), -1)


def poses_of_deltas(task: type["RobomimicTask"], deltas: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The set-points [N, 10 R] that the controller makes of delta actions [N, R, 7] in recorded states [N, n].

    As Diffusion Policy converts robomimic's datasets: the pose of the grip site in the state, plus the delta.
    """
    import mujoco
    from scipy.spatial.transform import Rotation

    scene = task.scene
    robosuite = load_robosuite(task.name)
    env_args = default_env_args(scene.env_name, scene.robots, False, robosuite.__version__)
    with closing(make_environment(robosuite, env_args)) as env:
        model, data = env.sim.model._model, env.sim.data._data
        if states.shape[1] != 1 + model.nq + model.nv:
            raise DataError(
                f"{STATES!r}: {task.name!r} has {1 + model.nq + model.nv} numbers, found {states.shape[1]}"
            )
        sites = [robot.eef_site_id["right"] for robot in env.robots]
        positions, matrices = np.empty((len(states), len(sites), 3)), np.empty((len(states), len(sites), 3, 3))
        for row, state in enumerate(states):
            data.qpos[:] = state[1 : 1 + model.nq]
            mujoco.mj_kinematics(model, data)
            positions[row] = data.site_xpos[sites]
            matrices[row] = data.site_xmat[sites].reshape(-1, 3, 3)
    scale: Any = np.array(ARM["output_max"])
    moves = np.clip(deltas[..., :6], -1, 1) * scale
    turns = Rotation.from_rotvec(moves[..., 3:].reshape(-1, 3)).as_matrix().reshape(matrices.shape)
    six = matrix_to_rot6d(turns @ matrices)
    return np.concatenate([positions + moves[..., :3], six, deltas[..., 6:]], axis=2).reshape(len(states), -1)
