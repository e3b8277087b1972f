"""The quadruped in PyBullet (extra `pybullet`): another simulator under the same policy, controller and pushes.

What agrees: masses, inertias, shapes, torque limits, gains, the controller's 200 Hz, observations, falls, forces.
What cannot: contacts and friction are Bullet's, and the inertia of a joint's rotor, for which Bullet has no place, is
added to the link that the joint turns, about the joint's axis. Bullet's solver wants shorter steps than MuJoCo's: it
makes five for each of the controller's.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.errors import RobopolicyError
from robopolicy.sim.quadruped import kinematics
from robopolicy.sim.quadruped.config import QuadrupedConfig
from robopolicy.sim.quadruped.env import ACTION_LIMIT
from robopolicy.sim.quadruped.observation import observation
from robopolicy.sim.quadruped.robots import CLEARANCE, CONTACT, JOINTS, PHYSICS_DT, ROTOR_INERTIA, SUBSTEPS, robot
from robopolicy.sim.quadruped.urdf import urdf

STEPS = 5
"""Bullet's steps for each step of the controller."""


class BulletQuadruped:
    """One robot on flat ground. The nominal robot of `config`: without randomisation, noise and delays."""

    def __init__(self, config: QuadrupedConfig, friction: float = 0.8) -> None:
        try:
            import pybullet
            from pybullet_utils.bullet_client import BulletClient
        except ImportError as error:
            raise RobopolicyError(
                "pybullet is not installed; install the extra: pip install 'robopolicy[pybullet]'"
            ) from error
        config.check()
        if config.terrain != "flat":
            raise RobopolicyError(
                f"the PyBullet quadruped walks on flat ground only, found terrain {config.terrain!r}"
            )
        self.config, self.robot = config, robot(config.robot)
        self._client: Any = BulletClient(pybullet.DIRECT)
        client = self._client
        client.setTimeStep(PHYSICS_DT / STEPS)
        client.setGravity(0, 0, -9.81)
        self._ground = client.createMultiBody(0, client.createCollisionShape(client.GEOM_PLANE))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "robot.urdf"
            path.write_text(urdf(self.robot))
            self._body = client.loadURDF(str(path), [0, 0, 1], flags=client.URDF_USE_INERTIA_FROM_FILE)
        numbers = {client.getJointInfo(self._body, i)[1].decode(): i for i in range(client.getNumJoints(self._body))}
        self._joints = [numbers[joint] for joint in JOINTS]
        # Joints resist with a velocity motor until its force is taken away.
        client.setJointMotorControlArray(self._body, self._joints, client.VELOCITY_CONTROL, forces=[0.0] * 12)
        client.changeDynamics(self._ground, -1, lateralFriction=friction)
        for link in (-1, *self._joints):
            # Bullet multiplies the friction of the two bodies; MuJoCo's ground alone decides.
            client.changeDynamics(
                self._body, link, lateralFriction=1.0, linearDamping=0, angularDamping=0, jointDamping=0
            )
        for link in self._joints:
            axis = np.array(client.getJointInfo(self._body, link)[13])
            inertia = np.array(client.getDynamicsInfo(self._body, link)[2]) + ROTOR_INERTIA * axis**2
            client.changeDynamics(self._body, link, localInertiaDiagonal=inertia.tolist())
        self.heading = 0.0
        self.command = np.zeros(2)
        self.fallen = False
        self._action = np.zeros(12)

    def reset(self, joints: np.ndarray | None = None) -> np.ndarray:
        """Starts at rest over the ground in `joints` [12] (default posture); the observation [45]."""
        client, angles = self._client, self.robot.posture if joints is None else joints
        position, _ = kinematics.feet(self.robot, angles[None], np.zeros((1, 12)))
        height = float((-position[2]).max()) + self.robot.foot_radius + CLEARANCE
        client.resetBasePositionAndOrientation(self._body, [0, 0, height], [0, 0, 0, 1])
        client.resetBaseVelocity(self._body, [0, 0, 0], [0, 0, 0])
        for number, angle in zip(self._joints, angles, strict=True):
            client.resetJointState(self._body, number, float(angle), 0.0)
        self._action, self.fallen = np.zeros(12), False
        return self.observe()

    def step(self, action: np.ndarray, force: np.ndarray) -> np.ndarray:
        """One control step with the policy's `action` [12] and `force` [3] in the base frame, N; the observation."""
        client, machine = self._client, self.robot
        self._action = np.clip(action, -ACTION_LIMIT, ACTION_LIMIT)
        target = machine.posture + machine.action_scale * self._action
        push = (self._rotation() @ force).tolist()
        for _ in range(SUBSTEPS):
            angles, speeds = self._angles()
            torque = np.clip(machine.kp * (target - angles) - machine.kd * speeds, -machine.torques, machine.torques)
            for _ in range(STEPS):
                client.setJointMotorControlArray(
                    self._body, self._joints, client.TORQUE_CONTROL, forces=torque.tolist()
                )
                centre = client.getBasePositionAndOrientation(self._body)[0]
                client.applyExternalForce(self._body, -1, push, centre, client.WORLD_FRAME)
                client.stepSimulation()
            contacts = client.getContactPoints(bodyA=self._body, linkIndexA=-1)
            weight = sum(contact[9] for contact in contacts)
            # Written so that numbers that are none are a fall, too.
            self.fallen |= not (weight <= CONTACT and self._rotation()[2, 2] >= self.config.min_upright)
        return self.observe()

    def level_into_base(self, force: np.ndarray) -> np.ndarray:
        """A force [3] of the frame that turns with the heading and stays level, in the base frame."""
        return kinematics.level_into_base(self._rotation()[None], force[None])[0]

    def observe(self) -> np.ndarray:
        """The policy's observation [45] float32."""
        rotation = self._rotation()
        angles, speeds = self._angles()
        _, spin = self._client.getBaseVelocity(self._body)
        commands = self.config.commands
        error = np.remainder(self.heading - kinematics.yaw(rotation[None])[0] + np.pi, 2 * np.pi) - np.pi
        turn = np.clip(commands.heading_gain * error, -commands.max_yaw_rate, commands.max_yaw_rate)
        seen = observation(
            np.array([[*self.command, turn]]),
            (rotation.T @ spin)[None],
            -rotation[2][None],
            (angles - self.robot.posture)[None],
            speeds[None],
            self._action[None],
        )
        return seen[0].astype(np.float32)

    def velocity(self) -> np.ndarray:
        """Of the trunk in the base frame [3], m/s."""
        return np.asarray(self._rotation().T @ np.array(self._client.getBaseVelocity(self._body)[0]))

    def position(self) -> np.ndarray:
        """Of the trunk in the world [3], m."""
        return np.array(self._client.getBasePositionAndOrientation(self._body)[0])

    def close(self) -> None:
        self._client.disconnect()

    def _rotation(self) -> np.ndarray:
        x, y, z, w = self._client.getBasePositionAndOrientation(self._body)[1]
        return np.asarray(kinematics.rotations(np.array([[w, x, y, z]]))[0])

    def _angles(self) -> tuple[np.ndarray, np.ndarray]:
        states = self._client.getJointStates(self._body, self._joints)
        return np.array([s[0] for s in states]), np.array([s[1] for s in states])
