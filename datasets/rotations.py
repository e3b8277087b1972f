"""Recognises rotations among columns of numbers: unit quaternions and their order, rot6d, axis-angle and Euler."""

from dataclasses import dataclass

import numpy as np

UNIT_TOLERANCE = 1e-2
"""Largest deviation of a norm from 1, and of a product of unit vectors from 0."""
UNIT_SHARE = 0.99
"""Share of steps that must be within the tolerance."""
FRAME_MARGIN = 0.1
"""By how much one frame must explain positions better than the other."""


@dataclass(frozen=True)
class RotationGroup:
    """Columns start..stop - 1 that hold one rotation."""

    start: int
    stop: int
    kind: str
    """rot6d, quat_wxyz, quat_xyzw, or quat when the order is unclear."""
    confidence: float
    evidence: str


def _mostly(good: np.ndarray) -> bool:
    return bool(good.mean() >= UNIT_SHARE)


def rotation_groups(columns: np.ndarray) -> list[RotationGroup]:
    """The rot6d and quaternion groups among columns [N, D], left to right; each column belongs to one at most."""
    found: list[RotationGroup] = []
    start, width = 0, columns.shape[1]
    while start < width:
        if start + 6 <= width and _is_rot6d(columns[:, start : start + 6]):
            found.append(RotationGroup(start, start + 6, "rot6d", 0.95, "is two orthogonal unit vectors"))
            start += 6
        elif start + 4 <= width and _is_quaternion(columns[:, start : start + 4]):
            kind, confidence, why = quaternion_order(columns[:, start : start + 4])
            found.append(RotationGroup(start, start + 4, kind, confidence, f"has norm 1; {why}"))
            start += 4
        else:
            start += 1
    return found


def _is_rot6d(six: np.ndarray) -> bool:
    a, b = six[:, :3], six[:, 3:]
    norms = np.abs(np.linalg.norm(six.reshape(-1, 2, 3), axis=2) - 1).max(axis=1)
    return _mostly((norms < UNIT_TOLERANCE) & (np.abs((a * b).sum(axis=1)) < UNIT_TOLERANCE)) and _varies(six)


def _is_quaternion(four: np.ndarray) -> bool:
    return _mostly(np.abs(np.linalg.norm(four, axis=1) - 1) < UNIT_TOLERANCE) and _varies(four)


def _varies(group: np.ndarray) -> bool:
    """Whether the numbers change continuously in two columns or more, unlike a one-hot code or a constant."""
    changing = np.ptp(group, axis=0) > 1e-4
    return int(changing.sum()) >= 2 and len(np.unique(group)) > 4


def quaternion_order(four: np.ndarray) -> tuple[str, float, str]:
    """(kind, confidence, evidence) for unit quaternions [N, 4].

    The real part is first or last. It is the one that is never negative where the sign was chosen so, and the larger
    one on average where rotations stay near the identity.
    """
    first, last = four[:, 0], four[:, 3]
    kept = [bool((c > -1e-3).mean() >= 0.999 and np.ptp(c) > 1e-4) for c in (first, last)]
    sizes = [float(np.abs(c).mean()) for c in (first, last)]
    why = f"mean size of the first number {sizes[0]:.2f}, of the last {sizes[1]:.2f}"
    if kept[0] != kept[1] and max(sizes) == sizes[kept.index(True)]:
        order = "quat_wxyz" if kept[0] else "quat_xyzw"
        return order, 0.8, f"the {'first' if kept[0] else 'last'} number alone is never negative, {why}"
    margin = abs(sizes[0] - sizes[1])
    if margin < 0.3:
        return "quat", 0.3, f"order unclear, {why}"
    # A gripper that points down has a dominant x or y instead, so size alone convinces only when it is near 1.
    confidence = 0.7 if max(sizes) > 0.9 else 0.5
    return ("quat_wxyz" if sizes[0] > sizes[1] else "quat_xyzw"), confidence, why


def sign_flips(four: np.ndarray) -> np.ndarray:
    """Steps t [K] at which a quaternion track [T, 4] goes on from q as -q', the same rotation with the other sign."""
    return np.flatnonzero((four[1:] * four[:-1]).sum(axis=1) < 0) + 1


def three_number_rotation(actions: np.ndarray, absolute: bool) -> tuple[str, float, str] | None:
    """(kind, confidence, evidence) for action[3:6] of end-effector poses of 6 or 7 numbers per arm."""
    if actions.shape[1] not in (6, 7, 12, 14):
        return None
    three = actions[:, 3:6]
    largest, norm = float(np.abs(three).max()), float(np.linalg.norm(three, axis=1).max())
    what = f"action[3:6] reaches {largest:.2f} per number and {norm:.2f} in norm"
    if not absolute:
        return "axis_angle or euler", 0.2, f"{what}; small rotations are alike in both"
    if largest > np.pi + 0.05:
        return "none in radians", 0.3, what
    if norm > np.pi + 0.05:
        return "euler_xyz", 0.5, f"{what}, more than pi"
    return "axis_angle", 0.5 if norm > 2.5 else 0.2, f"{what}, never more than pi"


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices [N, 3, 3] of unit quaternions [N, 4] in wxyz order."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def frame_of_deltas(
    actions: np.ndarray, states: np.ndarray, rows: np.ndarray, groups: list[RotationGroup]
) -> tuple[str, float, str] | None:
    """(frame, confidence, evidence): whether action[0:3] moves the position in the fixed or in the tool frame.

    The position is taken to be the three columns before a quaternion. None without such a pose, or when neither frame
    explains the motion.
    """
    quaternions = [g for g in groups if g.stop - g.start == 4 and g.start >= 3]
    if not quaternions or actions.shape[1] < 3:
        return None
    start = quaternions[0].start
    command, four = actions[rows, :3], states[rows, start : start + 4]
    moved = states[rows + 1, start - 3 : start] - states[rows, start - 3 : start]
    fixed = _mean_correlation(command, moved)
    tool = max(
        _mean_correlation(command, np.einsum("nji,nj->ni", matrices(q), moved))
        for q in (four, np.roll(four, 1, axis=1))
    )
    if max(fixed, tool) < 0.5 or abs(fixed - tool) < FRAME_MARGIN:
        return None
    evidence = f"mean correlation of action[0:3] with motion in the fixed frame {fixed:.2f}, in the tool's {tool:.2f}"
    confidence = round(min(1.0, max(fixed, tool) * (0.5 + abs(fixed - tool))), 2)
    return ("world" if fixed > tool else "tool"), confidence, evidence


def _mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the columns that vary of the correlation of a [N, D] with b [N, D], column by column."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    varies = norm > 1e-12
    return float(((a * b).sum(axis=0)[varies] / norm[varies]).mean()) if varies.any() else 0.0
