"""The tasks of robomimic on robosuite: lift, can, square, transport, tool_hang (Mandlekar et al. 2021).

Observations have robomimic's names, as `datasets/robomimic_hdf5.py` reads them:

observation.object                 poses of the task's objects, also relative to the hands, in robosuite 1.5's order
observation.robot<i>_eef_pos       position of the grip site in the world, m
observation.robot<i>_eef_quat      orientation of the hand body in robosuite's order xyzw
observation.robot<i>_gripper_qpos  positions of the two finger joints, m
observation.images.<camera>        uint8 [84, 84, 3] of agentview and robot0_eye_in_hand (tool_hang: 240 x 240)

A name without suffix takes the published datasets' own actions, 7 numbers an arm: changes of position and of
orientation (axis-angle, world frame) as shares of 0.05 m and 0.5 rad, and the gripper (-1 opens, +1 closes, 0 keeps).
With the suffix `-abs` they are Diffusion Policy's 10: position in the world, the first two rows of the rotation matrix
of the grip site, and the gripper. With `-image` the cameras take the place of `observation.object`.
"""

import math

from robopolicy.sim.robomimic_task import RobomimicTask, Scene


def _relative_and_world(*objects: str) -> tuple[tuple[str, int], ...]:
    """Poses in the hand, of one robosuite update before, and in the world."""
    return tuple(
        (f"{name}_{what}", size)
        for name in objects
        for what, size in (("to_robot0_eef_pos", 3), ("to_robot0_eef_quat", 4), ("pos", 3), ("quat", 4))
    )


class Lift(RobomimicTask):
    """Lift a cube of 4 cm by 4 cm off the table."""

    scene = Scene("lift", "Lift", (("cube_pos", 3), ("cube_quat", 4), ("gripper_to_cube_pos", 3)), 400)


class Can(RobomimicTask):
    """Move a can from one bin into its compartment of the other."""

    scene = Scene("can", "PickPlaceCan", _relative_and_world("Can"), 400)


class Square(RobomimicTask):
    """Put a square nut onto its peg."""

    scene = Scene("square", "NutAssemblySquare", _relative_and_world("SquareNut"), 400)


class Transport(RobomimicTask):
    """Two arms: one takes a hammer out of a covered bin and hands it over, the other clears a bin for it."""

    scene = Scene(
        "transport",
        "TwoArmTransport",
        (
            *(("payload_pos", 3), ("payload_quat", 4), ("trash_pos", 3), ("trash_quat", 4)),
            *(("lid_handle_pos", 3), ("lid_handle_quat", 4), ("target_bin_pos", 3), ("trash_bin_pos", 3)),
            *(("payload_in_target_bin", 1), ("trash_in_trash_bin", 1)),
            *(("gripper0_to_payload", 3), ("gripper0_to_lid_handle", 3)),
            *(("gripper1_to_payload", 3), ("gripper1_to_trash", 3)),
        ),
        700,
        base_yaw=(math.pi / 2, -math.pi / 2),
        cameras=("shouldercamera0", "robot0_eye_in_hand", "shouldercamera1", "robot1_eye_in_hand"),
        new_model=True,
    )


class ToolHang(RobomimicTask):
    """Assemble a frame from a base and a hook, then hang a tool on it."""

    scene = Scene(
        "tool_hang",
        "ToolHang",
        (*_relative_and_world("base", "frame", "tool"), ("frame_is_assembled", 1), ("tool_on_frame", 1)),
        700,
        cameras=("sideview", "robot0_eye_in_hand"),
        image_size=240,
    )


class LiftAbs(Lift):
    """Lift with absolute actions."""

    absolute = True


class LiftImage(Lift):
    """Lift seen by its cameras."""

    images = True


class LiftImageAbs(LiftImage):
    """Lift seen by its cameras, with absolute actions."""

    absolute = True


class CanAbs(Can):
    """Can with absolute actions."""

    absolute = True


class CanImage(Can):
    """Can seen by its cameras."""

    images = True


class CanImageAbs(CanImage):
    """Can seen by its cameras, with absolute actions."""

    absolute = True


class SquareAbs(Square):
    """Square with absolute actions."""

    absolute = True


class SquareImage(Square):
    """Square seen by its cameras."""

    images = True


class SquareImageAbs(SquareImage):
    """Square seen by its cameras, with absolute actions."""

    absolute = True


class TransportAbs(Transport):
    """Transport with absolute actions."""

    absolute = True


class TransportImage(Transport):
    """Transport seen by its cameras."""

    images = True


class TransportImageAbs(TransportImage):
    """Transport seen by its cameras, with absolute actions."""

    absolute = True


class ToolHangAbs(ToolHang):
    """Tool hang with absolute actions."""

    absolute = True


class ToolHangImage(ToolHang):
    """Tool hang seen by its cameras."""

    images = True


class ToolHangImageAbs(ToolHangImage):
    """Tool hang seen by its cameras, with absolute actions."""

    absolute = True
