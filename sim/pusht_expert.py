"""A closed-loop scripted expert for PushT, planned with the closed-form mechanics of the block.

The block is overdamped and frictionless: a push on one of its faces moves its centre of gravity along the inward
normal n and turns it by lever / gyration^2 radians per pixel, both fixed in the block's frame. A push with a
constant lever is therefore a circular arc, and a plan is one or two arcs (face, lever, length) that carry the
block to the goal. Every step the cheapest plan is found anew, counting the way around the block to each contact.

Planar points and directions are complex numbers, so that a rotation is a product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robopolicy.sim.pusht import GOAL_POSE, _PushT

RADIUS = 15.0  # of the agent, px
CENTRE = 45j  # centre of gravity in the block's frame, px
GYRATION_SQUARED = 3000.0  # moment of inertia per mass, px^2

# Faces of the T in its own frame: first point, last point, inward normal. The ends are drawn in so that the agent
# neither slips off a corner nor touches a second face.
FACES = (
    (-45 + 0j, 45 + 0j, 1j),
    (60 + 8j, 60 + 22j, -1 + 0j),
    (-60 + 8j, -60 + 22j, 1 + 0j),
    (35 + 30j, 49 + 30j, -1j),
    (-35 + 30j, -49 + 30j, -1j),
    (15 + 50j, 15 + 104j, -1 + 0j),
    (-15 + 50j, -15 + 104j, 1 + 0j),
    (-8 + 120j, 8 + 120j, -1j),
)
OUTLINE = np.array([-60, 60, 60 + 30j, -60 + 30j, -15 + 120j, 15 + 120j])  # corners of the T
WALL_COST, WALL_REACH = 4.0, 225.0  # per px of the block beyond this distance from the middle
SPACING = 9.0  # between candidate contacts on a face, px
LENGTHS = np.array([4.0, 6.5, 9, 13, 18, 25, 34, 45, 60, 80, 105, 135, 170, 210])  # of a push, px
MIN_LENGTH, LAST_LENGTH = 2.7, 0.4  # shortest push before another one, and shortest last push, px
AGAIN_COST = 0.0  # px of travel against pushing once more a face just done with
RESERVE = 4.0  # px of each end of a face kept for steering
SWITCH_MARGIN = 3.0  # px of travel that another face must save before the agent changes its mind
GRID = np.linspace(-1, 1, 9)
SLIDE_COST = 1.2  # of a slide along a face in touch with it, per px
CLEARANCE = 12.0  # gap to the block on the way around it, px
ANGLE_WEIGHT = 50.0  # px of error per radian of error
RESIDUAL_COST, SWITCH_COST, TOLERANCE = 3.0, 200.0, 2.5  # in px of travel; px of error that another push must mend
STEER = 7.0  # px by which a push may be steered along its face from one step to the next
SLIDE_GAP = 3.0  # to the face while sliding along it, px
PUSH_GAIN = 1.6  # of the target's distance near the end of a push, against the agent's slow settling
TRAVEL_LEAD, PUSH_LEAD = 32.0, 18.0  # distance of the target ahead of the agent, px; half of it is run per step


def block_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance in px of complex block-frame points to the T, negative inside."""

    def box(centre: complex, half_x: float, half_y: float) -> np.ndarray:
        offset = points - centre
        dx, dy = np.abs(offset.real) - half_x, np.abs(offset.imag) - half_y
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)

    return np.minimum(box(15j, 60, 15), box(75j, 15, 45))


def arc(normal: np.ndarray, length: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Displacement of the centre of gravity, in the starting frame, by a push along `normal` turning by `turn`."""
    return normal * length * np.sinc(turn / (2 * np.pi)) * np.exp(0.5j * turn)


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


@dataclass(frozen=True)
class _Push:
    """One planned push, in the block's frame."""

    face: int
    contact: complex
    lever: float
    length: float
    cost: float
    last: bool


class _Geometry:
    """Candidate contacts, and shortest ways between them around the block; constant in the block's frame."""

    def __init__(self) -> None:
        contacts, faces = [], []
        for index, (first, last, _) in enumerate(FACES):
            count = 1 + max(1, round(abs(last - first) / SPACING))
            contacts.append(np.linspace(first, last, count))
            faces += [index] * count
        self.contact = np.concatenate(contacts)
        self.face = np.array(faces)
        self.normal = np.array([f[2] for f in FACES])
        arm = self.contact - CENTRE
        push = self.normal[self.face]
        self.lever = arm.real * push.imag - arm.imag * push.real
        self.lever_low = np.array([self.lever[self.face == f].min() for f in range(len(FACES))])
        self.lever_high = np.array([self.lever[self.face == f].max() for f in range(len(FACES))])
        self.approach = self.contact - push * (RADIUS + CLEARANCE)
        gap = RADIUS + CLEARANCE - 2
        self.corner = np.array(
            [s * (60 + gap) + 1j * y for s in (-1, 1) for y in (-gap, 30 + gap)]
            + [s * (15 + gap) + 1j * y for s in (-1, 1) for y in (120 + gap, 30 + gap)]
        )
        self.hop = self._lengths(self.corner, self.corner)
        self.last_hop = self._lengths(self.corner, self.approach)
        around, _ = self.shortest(np.ones(len(self.corner), dtype=bool))
        to_corner = (self.last_hop.T[:, :, None] + around).min(axis=1)
        bent = (to_corner[:, :, None] + self.last_hop).min(axis=1)
        self.change = np.minimum(bent, self._lengths(self.approach, self.approach)) + 2 * CLEARANCE
        self.change[self.face[:, None] == self.face] = np.inf
        self.first = np.searchsorted(self.face, np.arange(len(FACES)))
        final = np.searchsorted(self.face, np.arange(len(FACES)), side="right") - 1
        self.spacing = (self.lever[final] - self.lever[self.first]) / (final - self.first)

    def nearest(self, lever: np.ndarray) -> np.ndarray:
        """Index of the contact [..., F] on each face whose lever is nearest to `lever` [..., F], within its range."""
        return self.first + np.rint((lever - self.lever[self.first]) / self.spacing).astype(int)

    def lever_at(self, point: complex) -> np.ndarray:
        """Lever [F] of pushes on each face along a line through `point`."""
        return -((point - CENTRE) * np.conj(self.normal)).imag

    def _lengths(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Lengths [N, M] of straight ways between points [N] and [M]; infinite through the block."""
        clear = self.visible(start[:, None], end[None, :])
        return np.where(clear, np.abs(start[:, None] - end), np.inf)

    def shortest(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shortest ways [C, C] between usable corners, and the next corner [C, C] on each (Floyd-Warshall)."""
        ways = np.where(usable[:, None] & usable, self.hop, np.inf)
        next_corner = np.tile(np.arange(len(ways)), (len(ways), 1))
        for k in np.flatnonzero(usable):
            through = ways[:, k, None] + ways[k]
            shorter = through < ways - 1e-9
            ways = np.where(shorter, through, ways)
            next_corner = np.where(shorter, next_corner[:, k, None], next_corner)
        return ways, next_corner

    def visible(self, start: np.ndarray, end: np.ndarray, gap: float = RADIUS + 5) -> np.ndarray:
        """Whether the agent keeps `gap` from the block on straight ways between broadcastable points."""
        along = np.linspace(0, 1, 33)
        ways = np.asarray(start)[..., None] * (1 - along) + np.asarray(end)[..., None] * along
        return np.all(block_distance(ways) >= gap, axis=-1)


class PushTExpert:
    """Plays PushT from its true state; create one, `reset` it before each episode, then `act` every step.

    `noise` is the standard deviation in px of a perturbation added to each action, drawn from `seed`. What the
    expert meant to do is in `intended`: recorded in place of the perturbed action, it teaches to mend errors without
    teaching the errors (DART, Laskey et al. 2017).
    """

    def __init__(self, seed: int = 0, noise: float = 6.0) -> None:
        self.generator = np.random.default_rng(seed)
        self.noise = noise
        self.geometry = _Geometry()
        self._push: _Push | None = None
        self.intended = np.zeros(2, np.float32)

    def reset(self) -> None:
        """Forgets the push of the last episode."""
        self._push = None

    def act(self, task: _PushT) -> np.ndarray:
        """The next pixel target [2] for the present true state of `task`."""
        agent = complex(*task.agent_position)
        x, y, angle = task.block_pose
        position, rotation = complex(x, y), np.exp(1j * angle)
        local = (agent - position) / rotation
        push, route = self._plan(local, position, rotation)
        target = self._pursue(local, push, route) * rotation + position
        action = np.array([target.real, target.imag])
        self.intended = np.clip(action, 5.0, 507.0).astype(np.float32)
        if self.noise:
            action += self.generator.normal(0.0, self.noise, 2)
        return np.clip(action, 5.0, 507.0).astype(np.float32)

    def _travel(
        self, local: complex, position: complex, rotation: complex
    ) -> tuple[np.ndarray, np.ndarray, Callable[[int], list[complex] | None]]:
        """Length [M] of the way from the agent to each contact, and a function giving the points on it, if any."""
        g = self.geometry
        start, retreat = local, 0.0
        gap = float(block_distance(np.array(local)))
        if gap < RADIUS + CLEARANCE - 4:
            slope = block_distance(local + np.array([0.5, -0.5, 0.5j, -0.5j]))
            outward = complex(slope[0] - slope[1], slope[2] - slope[3])
            retreat = RADIUS + CLEARANCE - gap
            start = local + outward / max(abs(outward), 1e-9) * retreat
        usable = self._inside(g.corner * rotation + position)
        around, next_corner = g.shortest(usable)
        to_corner = np.where(usable, g._lengths(np.array([start]), g.corner)[0], np.inf)
        first = (to_corner[:, None] + around).argmin(axis=0)
        reached = (to_corner[:, None] + around).min(axis=0)
        bent = reached[:, None] + g.last_hop
        straight = g._lengths(np.array([start]), g.approach)[0]
        length = np.minimum(bent.min(axis=0), straight) + retreat + CLEARANCE

        at = g.contact - g.normal[g.face] * RADIUS
        # In touch with the right face the agent slides along it.
        offset = (local - at) / g.normal[g.face]
        lever = g.lever_at(local)
        beside = (lever > g.lever_low - 2 * RESERVE) & (lever < g.lever_high + 2 * RESERVE)
        slides = (offset.real > -CLEARANCE - 4) & (offset.real < RADIUS / 2) & beside[g.face]
        length = np.where(slides, np.abs(offset.real) + SLIDE_COST * np.abs(offset.imag), length)
        length = np.where(self._inside(at * rotation + position), length, np.inf)

        def way(index: int) -> list[complex] | None:
            if slides[index]:
                return None
            points = [start] if start != local else []
            if straight[index] > bent[:, index].min():
                last = int(bent[:, index].argmin())
                corner = int(first[last])
                points.append(complex(g.corner[corner]))
                while corner != last:
                    corner = int(next_corner[corner, last])
                    points.append(complex(g.corner[corner]))
            return points

        return length, slides, way

    @staticmethod
    def _inside(points: np.ndarray) -> np.ndarray:
        return (np.abs(points.real - 256) < 252) & (np.abs(points.imag - 256) < 252)

    def _plan(self, local: complex, position: complex, rotation: complex) -> tuple[_Push, list[complex]]:
        """The push to make now, and the way [points in the block's frame] to its contact."""
        g = self.geometry
        travel, slides, way_to = self._travel(local, position, rotation)
        goal = complex(*GOAL_POSE[:2]) + CENTRE * np.exp(1j * GOAL_POSE[2])
        ahead = (goal - position) / rotation - CENTRE
        turn = float(_wrap(np.array(GOAL_POSE[2] - np.angle(rotation))))

        # Candidates: every contact with every length, and on each face the push that comes nearest to the goal.
        length, turned = self._last_push(np.array(ahead), np.array(turn))
        lever = np.clip(turned * GYRATION_SQUARED / np.maximum(length, 1e-6), g.lever_low, g.lever_high)
        index = np.concatenate([np.repeat(np.arange(len(g.contact)), len(LENGTHS)), g.nearest(lever)])
        levers = np.concatenate([np.repeat(g.lever, len(LENGTHS)), lever])
        lengths = np.concatenate([np.tile(LENGTHS, len(g.contact)), length])
        cost = travel[index] + self._cost(index, levers, lengths, ahead, turn)[0]
        cost += WALL_COST * self._overflow(index, levers, lengths, position, rotation)
        cost[lengths < LAST_LENGTH] = np.inf

        at_lever = g.lever_at(local)
        push = None
        if self._push is not None:
            kept = (g.face[index] == self._push.face) & (np.abs(levers - self._push.lever) <= STEER)
            best = int(np.where(kept, cost, np.inf).argmin())
            push = self._refined(index[best], levers[best], lengths[best], travel, slides, at_lever, ahead, turn)
            if push.length < (LAST_LENGTH if push.last else MIN_LENGTH):
                cost = cost + np.where(kept, AGAIN_COST, 0.0)
                push = None
            elif cost.min() + SWITCH_MARGIN < push.cost:
                push = None
        if push is None:
            best = int(cost.argmin())
            push = self._refined(index[best], levers[best], lengths[best], travel, slides, at_lever, ahead, turn)
        self._push = push
        way = way_to(int(index[best]))
        return push, [] if way is None else [*way, push.contact - g.normal[push.face] * (RADIUS + CLEARANCE)]

    def _overflow(
        self, index: np.ndarray, lever: np.ndarray, length: np.ndarray, position: complex, rotation: complex
    ) -> np.ndarray:
        """How far [N] in px pushes bring the block nearer to a wall than it may come."""
        turned = length * lever / GYRATION_SQUARED
        moved = CENTRE + arc(self.geometry.normal[self.geometry.face[index]], length, turned)

        def reach(centre: np.ndarray, heading: np.ndarray) -> np.ndarray:
            corners = (centre[:, None] + heading[:, None] * (OUTLINE - CENTRE)) * rotation + position - (256 + 256j)
            return np.maximum(np.abs(corners.real), np.abs(corners.imag)).max(axis=1)

        allowed = np.maximum(WALL_REACH, reach(np.array([CENTRE]), np.ones(1)))
        return np.maximum(reach(moved, np.exp(1j * turned)) - allowed, 0.0)

    def _cost(
        self, index: np.ndarray, lever: np.ndarray, length: np.ndarray, ahead: complex, turn: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Travel [N] in px of pushes from contact on with at most one more push, and whether there is none [N]."""
        g = self.geometry
        turned = length * lever / GYRATION_SQUARED
        left = (ahead - arc(g.normal[g.face[index]], length, turned)) * np.exp(-1j * turned)
        left_turn = _wrap(turn - turned)
        stop = self._residual_cost(np.hypot(np.abs(left), ANGLE_WEIGHT * left_turn))
        length2, turn2 = self._last_push(left, left_turn)
        rest = np.hypot(
            np.abs(left[:, None] - arc(g.normal, length2, turn2)), ANGLE_WEIGHT * (left_turn[:, None] - turn2)
        )
        lever2 = np.clip(turn2 * GYRATION_SQUARED / np.maximum(length2, 1e-6), g.lever_low, g.lever_high)
        on = g.change[index[:, None], g.nearest(lever2)] + length2 + self._residual_cost(rest)
        more = on.min(axis=1)
        return length + np.minimum(stop, more), stop < more

    def _refined(
        self,
        index: int,
        lever: float,
        length: float,
        travel: np.ndarray,
        slides: np.ndarray,
        at_lever: np.ndarray,
        ahead: complex,
        turn: float,
    ) -> _Push:
        """The best push near a candidate."""
        g = self.geometry
        face = int(g.face[index])
        base = g.lever[index]
        for scale in (1.0, 0.25):
            levers = lever + scale * SPACING * GRID
            levers = np.clip(levers, g.lever_low[face] - RESERVE, g.lever_high[face] + RESERVE)
            lengths = length * np.exp(scale * 0.35 * GRID)
            many, long = (m.ravel() for m in np.meshgrid(levers, lengths))
            cost, last = self._cost(np.full(many.shape, index), many, long, ahead, turn)
            cost += (
                SLIDE_COST * np.abs(many - at_lever[face]) if slides[index] else travel[index] + np.abs(many - base)
            )
            best = int(cost.argmin())
            lever, length = float(many[best]), float(long[best])
        along = (FACES[face][1] - FACES[face][0]) / abs(FACES[face][1] - FACES[face][0])
        # The lever changes along a face by one pixel per pixel.
        rise = along.real * g.normal[face].imag - along.imag * g.normal[face].real
        contact = complex(g.contact[index] + along * rise * (lever - base))
        return _Push(face, contact, lever, length, float(cost[best]), bool(last[best]))

    def _last_push(self, ahead: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Length and turn [..., F] of the push on each face that comes nearest to (ahead, turn) [...]."""
        g = self.geometry
        ahead, turn = ahead[..., None], turn[..., None]

        def length_for(turned: np.ndarray) -> np.ndarray:
            direction = g.normal * np.exp(0.5j * turned)
            along = ahead.real * direction.real + ahead.imag * direction.imag
            return np.clip(along / np.sinc(turned / (2 * np.pi)), 0, 400)

        for _ in range(2):
            per_lever = length_for(turn) / GYRATION_SQUARED
            turn = np.clip(turn, per_lever * g.lever_low, per_lever * g.lever_high)
            turn = np.clip(turn, -np.pi, np.pi)
        return length_for(turn), turn

    @staticmethod
    def _residual_cost(residual: np.ndarray) -> np.ndarray:
        return RESIDUAL_COST * residual + SWITCH_COST * np.minimum(residual / TOLERANCE, 1)

    def _pursue(self, local: complex, push: _Push, way: list[complex]) -> complex:
        """The target, in the block's frame now: a point ahead of the agent on its way, or on the push."""
        g = self.geometry
        normal = complex(g.normal[push.face])
        points = [local, *way]
        hops = np.abs(np.diff(points)) if len(points) > 1 else np.zeros(0)
        remaining = float(hops.sum())
        if len(way) < 2 and remaining < TRAVEL_LEAD:
            return self._push_target(local, push, normal)
        keep = min(RADIUS + 3, float(block_distance(np.array(local))) - 0.5)
        for lead in (TRAVEL_LEAD, 0.75 * TRAVEL_LEAD, 0.5 * TRAVEL_LEAD, 0.25 * TRAVEL_LEAD):
            left, target = lead, points[-1]
            for start, end, hop in zip(points[:-1], points[1:], hops, strict=True):
                if hop >= left:
                    target = start + (end - start) * left / hop
                    break
                left -= hop
            if g.visible(np.array(local), np.array(target), keep):
                break
        return complex(target)

    def _push_target(self, local: complex, push: _Push, normal: complex) -> complex:
        """The target of an agent in front of its contact: sideways until it is aligned, then along the push."""
        offset = (local - push.contact) / normal
        gap = -offset.real - RADIUS
        aligned = min(max(1.5 - abs(offset.imag) / (16 if gap < 2 else 8), 0.0), 1.0)
        arm = push.contact - CENTRE
        lever = arm.real * normal.imag - arm.imag * normal.real
        length = min(PUSH_LEAD * aligned - max(gap, 0.0), PUSH_GAIN * push.length)
        if length <= 0:
            sideways = -float(np.clip(offset.imag, -TRAVEL_LEAD, TRAVEL_LEAD))
            inward = length + max(gap, 0.0) + min(gap - SLIDE_GAP, 0.0) * (1 - aligned)
            return local + normal * complex(inward, sideways)
        turned = length * lever / GYRATION_SQUARED
        centre = CENTRE + arc(np.array(normal), np.array(length), np.array(turned))
        return complex(centre + (arm - normal * RADIUS) * np.exp(1j * turned))
