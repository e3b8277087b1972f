"""Checks of one camera's frames: frozen and blank ones."""

from dataclasses import dataclass

import numpy as np

from robopolicy.datasets.motion import longest_run, moving, steps_of

SAME_LEVELS = 8
"""Largest difference of a pixel, of 255, between frames that count as the same: video coding changes that much."""
BLANK_DEVIATION = 2.0
"""Standard deviation of all pixels below which a frame shows nothing; black frames are blank ones with a low mean."""
BLACK_MEAN = 16.0
"""Mean below which a blank frame is called black (video black is 16)."""
FROZEN_SECONDS, FROZEN_STEPS = 0.5, 5
"""A camera is frozen when it repeats a frame for this long while the robot moves."""
FROZEN_TRAVEL = 0.1
"""Way of some state in that time, as a share of its span: slow motion may change no pixel for a while."""
LOOKED_AT = 128
"""Pixels a side, at most twice that, that are compared; larger frames are thinned."""


@dataclass(frozen=True)
class CameraProblem:
    """A stretch of one episode in which a camera shows nothing new or nothing at all."""

    kind: str
    """frozen, black or blank."""
    start: int
    steps: int
    whole: bool
    """Whether it is the whole episode."""


def camera_problems(frames: np.ndarray, scaled: np.ndarray, rate_hz: float | None) -> list[CameraProblem]:
    """Problems of frames [T, height, width, C] uint8 of an episode with states [T, D] in spans (`Spans.scaled`)."""
    n = len(frames)
    stride = max(1, min(frames.shape[1:3]) // LOOKED_AT)
    same, blank, black = np.zeros(max(n - 1, 0), bool), np.zeros(n, bool), np.zeros(n, bool)
    previous = None
    for t in range(n):
        frame = np.asarray(frames[t, ::stride, ::stride])
        blank[t] = frame.std(axis=(0, 1)).max() < BLANK_DEVIATION
        black[t] = blank[t] and frame.mean() < BLACK_MEAN
        if previous is not None:
            same[t - 1] = int((np.maximum(frame, previous) - np.minimum(frame, previous)).max()) <= SAME_LEVELS
        previous = frame
    found = []
    for kind, flags in (("black", black), ("blank", blank & ~black)):
        start, length = longest_run(flags)
        if length:
            found.append(CameraProblem(kind, start, length, bool(flags.all())))
    # A camera that shows a resting scene repeats frames by right.
    start, length = longest_run(same & moving(scaled) & ~blank[1:])
    travel = float(np.ptp(scaled[start : start + length + 1], axis=0).max(initial=0.0))
    if length >= steps_of(FROZEN_SECONDS, FROZEN_STEPS, rate_hz) and travel >= FROZEN_TRAVEL:
        found.append(CameraProblem("frozen", start, length + 1, length == n - 1))
    return found
