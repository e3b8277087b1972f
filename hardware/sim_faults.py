"""Faults of sensors, on purpose: what a simulated robot does to its own messages so that the graph can be tested."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Faults:
    """What goes wrong at present; times in seconds of the simulation."""

    delay_s: float = 0.0
    """Every message leaves so much later."""
    drop: float = 0.0
    """Share of messages that never leave."""
    reorder: float = 0.0
    """Share of messages that leave after the next one of their topic."""
    noise: float = 0.0
    """Standard deviation added to joint positions, in their units."""
    nan: bool = False
    """Joint positions are not a number."""
    stale_stamps: bool = False
    """Stamps stand still."""
    freeze_camera: bool = False
    """Cameras repeat their last picture with new stamps."""
    clock_jump_s: float = 0.0
    """Added to every stamp and to /clock."""

    @property
    def names(self) -> list[str]:
        """Of what goes wrong."""
        return [name for name, value in vars(self).items() if value]


@dataclass
class _Waiting:
    due: float
    send: Callable[[Any], None]
    message: Any


@dataclass
class Outbox:
    """Sends messages of all topics, or delays, drops and swaps them."""

    rng: np.random.Generator
    waiting: deque[_Waiting] = field(default_factory=deque)
    held: dict[str, _Waiting] = field(default_factory=dict)
    """Per topic, the message that the next one overtakes."""

    def put(self, now: float, topic: str, send: Callable[[Any], None], message: Any, faults: Faults) -> None:
        """One message; what leaves at once is sent in here."""
        if faults.drop and self.rng.random() < faults.drop:
            return
        one = _Waiting(now + faults.delay_s, send, message)
        overtaken = self.held.pop(topic, None)
        if overtaken is None and faults.reorder and self.rng.random() < faults.reorder:
            self.held[topic] = one
            return
        for each in (one, overtaken):
            if each is not None:
                self.waiting.append(each)
        self.release(now)

    def release(self, now: float) -> None:
        """Sends what is due."""
        late: deque[_Waiting] = deque()
        while self.waiting:
            one = self.waiting.popleft()
            if one.due <= now + 1e-9:
                one.send(one.message)
            else:
                late.append(one)
        self.waiting = late

    def clear(self) -> None:
        self.waiting.clear()
        self.held.clear()
