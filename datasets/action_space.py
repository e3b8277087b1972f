"""What the numbers of an action seem to mean, judged from how states answer to them, with confidence and evidence.

Nothing here is certain: a `Guess` says how sure it is and why. Contradictions between a confident guess and the
declared `Control` are what makes policies fail silently (absolute/delta mix-ups, quaternion order, gripper sign).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robopolicy.datasets.episodes import sampled_rows
from robopolicy.datasets.rotations import frame_of_deltas, rotation_groups, three_number_rotation
from robopolicy.features import Control

MATCHED = 0.5
"""Least correlation at which an action dimension counts as explained by a state dimension."""
TIE = 0.2
"""Difference of mean correlations below which the response of the state decides instead."""
IS_VELOCITY = 0.9
"""Correlation with the change of another dimension from which on a state dimension counts as its velocity."""
GRIPPER_LAG = 5
"""Steps after which a gripper has answered."""
LARGEST_WIDTH = 0.3
"""Gripper states beyond this are angles or encoder counts rather than an opening in metres, whose sign is known."""
MAX_PAIRS = 100_000
MAX_STATE_DIMS = 128


@dataclass(frozen=True)
class Guess:
    """One judgement about the action space."""

    what: str
    """mode, frame, rotation or gripper."""
    value: str
    confidence: float
    """0 to 1; below `doctor.CONFIDENT` it is only told, not compared."""
    evidence: str


@dataclass(frozen=True)
class Signals:
    """Actions and states of all steps, as float64."""

    actions: np.ndarray
    """[N, D_a]"""
    states: np.ndarray
    """[N, D_s]"""
    action_names: Sequence[str]
    state_names: Sequence[str]
    """As "observation.state[0] x": key, index in the flattened value, and name when there is one."""
    ends: np.ndarray
    """[E]"""

    def pairs(self, lag: int = 1) -> np.ndarray:
        """Rows t for which t + lag lies in the same episode, evenly thinned to `MAX_PAIRS`."""
        last = np.zeros(len(self.actions) + lag, dtype=bool)
        for shift in range(1, lag + 1):
            last[np.maximum(self.ends - shift, 0)] = True
        rows = np.flatnonzero(~last[: len(self.actions)])
        return rows[sampled_rows(len(rows), MAX_PAIRS)] if len(rows) else rows


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation [A, B] of the columns of a [N, A] with those of b [N, B]; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    # Rounding leaves constant columns of large numbers a little off their mean.
    floor = 1e-12 * len(a) * (1 + np.abs(a).max(initial=0.0)) * (1 + np.abs(b).max(initial=0.0))
    return np.where(norm > floor, a.T @ b / np.maximum(norm, floor), 0.0)


def is_binary(values: np.ndarray) -> bool:
    """Whether a column takes at most three values, as open/close commands do."""
    return len(np.unique(values[sampled_rows(len(values), MAX_PAIRS)])) <= 3


def guess_action_space(signals: Signals) -> list[Guess]:
    """All that can be said; empty for data without states or with a handful of steps."""
    rows = signals.pairs()
    if len(rows) < 10 or signals.states.shape[1] == 0:
        return []
    states = signals.states[:, :MAX_STATE_DIMS]
    groups = rotation_groups(states)
    found = []
    framed = frame_of_deltas(signals.actions, states, rows, groups)
    mode = _mode(signals, rows)
    if framed is not None and framed[0] == "tool":
        mode = Guess("mode", "delta", framed[1], framed[2])
    if mode is not None:
        found.append(mode)
        if mode.value == "delta" and framed is not None:
            found.append(Guess("frame", *framed))
    action_groups = rotation_groups(signals.actions)
    found += [
        Guess("rotation", g.kind, g.confidence, f"action[{g.start}:{g.stop}] {g.evidence}") for g in action_groups
    ]
    if not action_groups and groups:
        three = three_number_rotation(signals.actions, mode is not None and mode.value == "absolute")
        found += [Guess("rotation", *three)] if three else []
    gripper = _gripper(signals)
    return found + ([gripper] if gripper else [])


def _mode(signals: Signals, rows: np.ndarray) -> Guess | None:
    actions, names = signals.actions[rows], signals.state_names[:MAX_STATE_DIMS]
    now, after = signals.states[rows, :MAX_STATE_DIMS], signals.states[rows + 1, :MAX_STATE_DIMS]
    change = after - now
    steered = [d for d in range(actions.shape[1]) if not is_binary(actions[:, d])]
    if not steered:
        return None
    actions = actions[:, steered]
    # A velocity answers to a delta action as a position answers to an absolute one.
    speeds = np.array(["vel" in name for name in names]) | (correlations(after, change) >= IS_VELOCITY).any(axis=1)
    # Only with the same sign: an expert that steers towards a goal makes delta actions follow minus the state.
    absolute = np.where(speeds[None], 0.0, correlations(actions, after)).clip(min=0)
    delta = correlations(actions, change).clip(min=0)
    best_absolute, best_delta = absolute.max(axis=1), delta.max(axis=1)
    matched = np.maximum(best_absolute, best_delta) >= MATCHED
    if not matched.any():
        return Guess("mode", "unclear", 0.0, f"no action dimension correlates above {MATCHED} with the next state")
    a, d = float(best_absolute[matched].mean()), float(best_delta[matched].mean())
    columns = np.where(best_absolute >= best_delta, absolute.argmax(axis=1), delta.argmax(axis=1))
    partners = ", ".join(
        f"{signals.action_names[steered[i]]}~{names[columns[i]]}" for i in np.flatnonzero(matched)[:3]
    )
    evidence = (
        f"mean correlation of action[t] with state[t+1] {a:.2f}, with state[t+1]-state[t] {d:.2f}, over "
        f"{int(matched.sum())} of {len(steered)} dimensions ({partners})"
    )
    if abs(a - d) >= TIE:
        winner, confidence = ("absolute" if a > d else "delta"), abs(a - d) / max(a, d)
        return Guess("mode", winner, round(float(confidence), 2), evidence)
    return _mode_by_response(actions, now, change, np.flatnonzero(matched), columns, evidence)


def _mode_by_response(
    actions: np.ndarray, now: np.ndarray, change: np.ndarray, matched: np.ndarray, columns: np.ndarray, evidence: str
) -> Guess:
    """Least squares change = alpha * action + beta * state: a set-point pulls back (beta = -alpha), a delta not."""
    ratios = []
    for i in matched:
        inputs = np.column_stack([actions[:, i], now[:, columns[i]]])
        inputs = inputs - inputs.mean(axis=0)
        if abs(correlations(inputs[:, :1], inputs[:, 1:])[0, 0]) > 0.98:
            continue  # The action is a function of the state, so the two cannot be told apart.
        (alpha, beta), *_ = np.linalg.lstsq(inputs, change[:, columns[i]] - change[:, columns[i]].mean(), rcond=None)
        if alpha > 0:
            ratios.append(float(np.clip(-beta / alpha, 0, 1)))
    if not ratios:
        return Guess("mode", "unclear", 0.0, evidence)
    pull = float(np.mean(ratios))
    confidence = round(0.8 * abs(2 * pull - 1), 2)
    evidence += f"; the state pulls back towards the action by {pull:.2f} (1 absolute, 0 delta)"
    return Guess("mode", "absolute" if pull > 0.5 else "delta", confidence, evidence)


def _gripper(signals: Signals) -> Guess | None:
    columns = [j for j, name in enumerate(signals.state_names) if "grip" in name or "finger" in name]
    columns = [j for j in columns if "vel" not in signals.state_names[j]]
    commands = [i for i, name in enumerate(signals.action_names) if "grip" in name]
    if not commands and signals.actions.shape[1] in (4, 7, 8, 10):
        # Position, rotation if any, and by convention the gripper last.
        commands = [signals.actions.shape[1] - 1]
    rows = signals.pairs(GRIPPER_LAG)
    if not columns or not commands or len(rows) < 10:
        return None
    # Fingers that move apart have opposite signs, so the opening is the sum of what each is off zero.
    width = np.abs(signals.states[:, columns]).sum(axis=1, keepdims=True)
    command = signals.actions[rows][:, commands[:1]]
    later, before = width[rows + GRIPPER_LAG], width[rows]
    strengths = [float(correlations(command, other)[0, 0]) for other in (later - before, later)]
    strongest = max(strengths, key=abs)
    if abs(strongest) < 0.3:
        return Guess("gripper", "unclear", 0.0, f"correlation of command and gripper state only {strongest:.2f}")
    confidence = abs(strongest) if width.max() <= LARGEST_WIDTH else 0.5 * abs(strongest)
    doubt = "" if width.max() <= LARGEST_WIDTH else ", if the state grows when it opens (it is no width in metres)"
    name = signals.action_names[commands[0]]
    evidence = f"{name} correlates {strongest:.2f} with the opening {GRIPPER_LAG} steps later{doubt}"
    return Guess("gripper", "positive_opens" if strongest > 0 else "positive_closes", round(confidence, 2), evidence)


def contradictions(guesses: Sequence[Guess], control: Control, confident: float) -> list[str]:
    """One line per confident guess that the declared control contradicts."""
    lines = []
    by_what: dict[str, list[Guess]] = {}
    for guess in guesses:
        if guess.confidence >= confident:
            by_what.setdefault(guess.what, []).append(guess)
    for guess in by_what.get("mode", []):
        # A velocity set-point is absolute and moves the state by differences, so it may look like either.
        if control.target != "velocity" and guess.value != control.mode:
            lines.append(f"declared {control.mode}, looks {guess.value} ({guess.evidence})")
    for guess in by_what.get("frame", []):
        if (guess.value == "tool") != (control.frame == "tool") and control.frame in ("tool", "base", "world"):
            lines.append(f"declared in the {control.frame} frame, looks like {guess.value} ({guess.evidence})")
    rotations = by_what.get("rotation", [])
    if rotations and control.rotation != "none" and control.rotation not in [g.value for g in rotations]:
        lines.append(
            f"declared rotation {control.rotation}, looks like {rotations[0].value} ({rotations[0].evidence})"
        )
    for guess in by_what.get("gripper", []):
        if control.gripper not in ("none", guess.value):
            lines.append(f"declared gripper {control.gripper}, looks {guess.value} ({guess.evidence})")
    return lines
