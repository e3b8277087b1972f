"""A scripted player for the blocks task: one smooth rule, played in sixteen styles.

A style is drawn per episode: which block goes first, which block goes into which target, and on which side the
effector walks around each block to get behind it. Within a style the next move depends on what is observed now and
on nothing before, so a policy that sees a few steps can tell the style and follow it. Points and directions of the
table are complex numbers.
"""

import cmath
from dataclasses import dataclass

import numpy as np

from robopolicy.sim.blocks import MAX_STEP, REACH, Blocks

TRAVEL, PUSH = 0.020, 0.016  # change of the set-point per step on the way and in touch, m
BEHIND = 0.085  # from a block to where a push begins, m
CLEAR = 0.078  # kept from the middle of a block on the way around it, m
AISLE = 0.10  # kept between the middles of a pushed block and the other one, m
PLACED = 0.008  # distance in m from its target at which the player leaves a block
TOUCH = 0.060  # from a block within which the effector touches it, m
ALIGNED, HELD = 0.012, 0.030  # lateral errors with which a push begins, and goes on once in touch, m
FADE = 0.012  # over which one way of moving turns into another, m
STEER = 40.0  # lateral correction while pushing, per metre of lateral error


@dataclass(frozen=True)
class Style:
    """How one episode is played."""

    order: tuple[int, int]
    """Block that is pushed first, and second."""
    assignment: tuple[int, int]
    """Target of each block."""
    sides: tuple[int, int]
    """Way around each block: 1 counterclockwise, -1 clockwise."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Style":
        """One of the sixteen styles, all equally likely."""
        a, b, c, d = random.integers(2, size=4).tolist()
        return cls((a, 1 - a), (b, 1 - b), (2 * c - 1, 2 * d - 1))


class BlocksPlayer:
    """Plays from the true state of the task; create one, `reset` it before each episode, then `act` every step.

    The player pursues an assignment of its own and asks the task for it (`Blocks.ask`), so what counts as success is
    what was played; with `follow_goal` it plays the goal it is shown. `noise` is the standard deviation in m of a
    perturbation added to each action; `intended` is the action without it, which is what recordings store.
    """

    def __init__(self, seed: int = 0, noise: float = 0.004, follow_goal: bool = False) -> None:
        self.generator = np.random.default_rng(seed)
        self.noise, self.follow_goal = noise, follow_goal
        self.style = Style.draw(self.generator)
        self.intended = np.zeros(2, np.float32)
        self._drawn = False

    def reset(self) -> None:
        """Draws the style of the next episode; that of the first one was drawn with the player."""
        if self._drawn:
            self.style = Style.draw(self.generator)
        self._drawn = True

    def act(self, task: Blocks) -> np.ndarray:
        """The next change [2] in m of the effector's set-point for the present true state of `task`."""
        if self.follow_goal:
            self.style = Style(self.style.order, task.assignment, self.style.sides)
        elif task.assignment != self.style.assignment:
            task.ask(self.style.assignment)
        self.intended = move(self.style, task.block_places, task.effector_target, task.targets).astype(np.float32)
        action = self.intended + self.generator.normal(0.0, self.noise, 2)
        return np.clip(action, -MAX_STEP, MAX_STEP).astype(np.float32)


def move(style: Style, blocks: np.ndarray, set_point: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Change [2] in m of the set-point [2], given the places of blocks [2, 2] and targets [2, 2]: the whole rule.

    It reckons with the set-point, which the effector follows closely, and not with the effector itself: changes
    that mended the millimetres between the two would be hard to learn.
    """
    at = complex(*set_point)
    place = [complex(*b) for b in blocks]
    goal = [complex(*targets[t]) for t in style.assignment]
    left = [i for i in style.order if abs(goal[i] - place[i]) > PLACED]
    if not left:
        return np.zeros(2)
    block, other = left[0], 1 - left[0]
    side = style.sides[block]

    # Push towards the target, or past the other block when that is in the way.
    way = goal[block] - place[block]
    ahead = _around(place[block], goal[block], place[other], AISLE, 0)
    offset = (at - place[block]) / ahead
    touching = min(max((TOUCH + FADE - abs(offset)) / FADE, 0.0), 1.0)
    width = ALIGNED + touching * (HELD - ALIGNED)
    pushing = min(max((width + FADE - abs(offset.imag)) / FADE, 0.0), 1.0) if offset.real < 0 else 0.0

    lead = min(PUSH, max(abs(offset) - 0.055, 0.0) + 0.8 * abs(way) + 0.004)
    push = ahead * lead * _unit(complex(1.0, -STEER * (1 - touching) * offset.imag))
    behind = place[block] - ahead * BEHIND
    if abs(behind.real) > REACH or abs(behind.imag) > REACH:
        behind = complex(np.clip(behind.real, -REACH, REACH), np.clip(behind.imag, -REACH, REACH))
    heading = _around(at, behind, place[block], CLEAR, side)
    heading = _around(at, at + heading * 0.1, place[other], CLEAR, 0)
    walk = heading * min(TRAVEL, abs(behind - at) + 0.004)
    change = pushing * push + (1 - pushing) * walk
    return np.clip([change.real, change.imag], -MAX_STEP, MAX_STEP)


def _unit(value: complex) -> complex:
    return value / max(abs(value), 1e-9)


def _around(start: complex, end: complex, obstacle: complex, radius: float, side: int) -> complex:
    """First direction (unit) of a way from `start` to `end` that keeps `radius` from `obstacle`.

    `side` 1 walks around it counterclockwise, -1 clockwise, 0 on the nearer side. Within the radius the way leads
    along it and outwards.
    """
    straight = _unit(end - start)
    to_obstacle = (obstacle - start) / straight
    along = min(max(to_obstacle.real, 0.0), abs(end - start))
    if abs(to_obstacle - along) >= radius or to_obstacle.real <= 0:
        return straight
    distance = abs(to_obstacle)
    turn = side or (1 if to_obstacle.imag >= 0 else -1)
    outward = -_unit(obstacle - start)
    if distance <= radius:
        return _unit(outward * 1j * turn + outward * 4 * (radius - distance) / radius)
    tangent = cmath.asin(radius / distance).real
    return -outward * cmath.exp(-1j * turn * tangent)
