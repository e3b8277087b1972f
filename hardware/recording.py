"""What a recorder does besides listening: a black box in memory, and a thread that owns the disk.

Nothing here waits for the disk: messages that it cannot take are dropped and counted.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robopolicy.errors import RobopolicyError, one_line

if TYPE_CHECKING:
    from robopolicy.datasets.bag_stream import BagStream

OVERHEAD = 200
"""Bytes that a message costs in memory besides its own."""


@dataclass(frozen=True)
class Message:
    """One serialised message."""

    time: int
    """Of its arrival, ns."""
    topic: str
    type: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data) + OVERHEAD


class BlackBox:
    """The newest messages: at most `seconds` of them, and at most `max_bytes`."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds, self.max_bytes = seconds, max_bytes
        self.bytes = 0
        self._messages: deque[Message] = deque()

    def add(self, message: Message) -> None:
        if self._messages and message.time < self._messages[-1].time:
            self.clear()  # A clock that went back: the old times would never leave.
        self._messages.append(message)
        self.bytes += message.size
        oldest = message.time - round(self.seconds * 1e9)
        while self._messages[0].time < oldest or (self.bytes > self.max_bytes and len(self._messages) > 1):
            self.bytes -= self._messages.popleft().size

    def messages(self) -> list[Message]:
        """Oldest first."""
        return list(self._messages)

    @property
    def held_s(self) -> float:
        """Seconds from the oldest to the newest message."""
        return (self._messages[-1].time - self._messages[0].time) * 1e-9 if self._messages else 0.0

    def clear(self) -> None:
        self._messages.clear()
        self.bytes = 0


@dataclass(frozen=True)
class _Open:
    path: Path
    custom: dict[str, str]


@dataclass(frozen=True)
class _Dump:
    path: Path
    custom: dict[str, str]
    messages: tuple[Message, ...]


class _Close:
    pass


class BagThread:
    """Writes bags one after the other; no method waits for the disk but `stop`.

    `write` refuses a message when `max_bytes` wait already. Bags that could not be written are in `errors`.
    """

    def __init__(self, max_bytes: int, flush_s: float = 1.0) -> None:
        self.max_bytes, self.flush_s = max_bytes, flush_s
        self.dropped: Counter[str] = Counter()
        """Messages per topic that found no room."""
        self.errors: list[str] = []
        self.finished: list[Path] = []
        """Bags that are closed and on the disk."""
        self.waiting = 0
        """Bytes not written yet."""
        self._jobs: deque[Message | _Open | _Dump | _Close | None] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="bag writer", daemon=True)
        self._thread.start()

    def open(self, path: Path, custom: dict[str, str]) -> None:
        """Begins a bag: the messages from now on are its own."""
        self._put(_Open(path, custom))

    def write(self, message: Message) -> bool:
        """Whether there was room for it."""
        with self._changed:
            if self.waiting + message.size > self.max_bytes:
                self.dropped[message.topic] += 1
                return False
            self.waiting += message.size
            self._jobs.append(message)
            self._changed.notify()
        return True

    def close(self) -> None:
        """Ends the bag."""
        self._put(_Close())

    def dump(self, path: Path, custom: dict[str, str], messages: Iterable[Message]) -> None:
        """A whole bag of its own, beside the one under way."""
        self._put(_Dump(path, custom, tuple(messages)))

    def stop(self, timeout: float = 10.0) -> bool:
        """Writes what waits, ends the bag under way and the thread; whether all was done in time."""
        self._put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _put(self, job: "_Open | _Dump | _Close | None") -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def _run(self) -> None:
        bag: BagStream | None = None
        flushed, dirty = time.monotonic(), False
        while True:
            idle, job = self._next()
            try:
                if isinstance(job, Message):
                    if bag is not None:
                        _add(bag, job)
                        dirty = True
                elif isinstance(job, _Dump):
                    self._dump(job)
                elif not idle:
                    if bag is not None:
                        done, bag = bag, None
                        done.close()
                        self.finished.append(done.path)
                    bag, dirty = _begin(job) if isinstance(job, _Open) else None, False
                if bag is not None and dirty and time.monotonic() - flushed >= self.flush_s:
                    bag.flush()
                    flushed, dirty = time.monotonic(), False
            except (OSError, RobopolicyError) as error:
                path = job.path if isinstance(job, _Dump | _Open) else bag.path if bag is not None else "recording"
                self.errors.append(f"{path}: {one_line(error)}")
                bag = bag if isinstance(job, _Dump) else None
            if job is None and not idle:
                return

    def _next(self) -> tuple[bool, "Message | _Open | _Dump | _Close | None"]:
        """(whether nothing is to do, the next job); waits for one until it is time to flush."""
        with self._changed:
            if not self._jobs:
                self._changed.wait(self.flush_s)
            if not self._jobs:
                return True, None
            job = self._jobs.popleft()
            if isinstance(job, Message):
                self.waiting -= job.size
            return False, job

    def _dump(self, job: _Dump) -> None:
        bag = _begin(job)
        for message in job.messages:
            _add(bag, message)
        bag.close()
        self.finished.append(job.path)


def _begin(job: "_Open | _Dump") -> "BagStream":
    from robopolicy.datasets.bag_stream import BagStream

    job.path.parent.mkdir(parents=True, exist_ok=True)
    return BagStream(job.path, job.custom)


def _add(bag: "BagStream", message: Message) -> None:
    if message.topic not in bag:
        bag.add(message.topic, message.type)
    bag.write(message.topic, message.time, message.data)
