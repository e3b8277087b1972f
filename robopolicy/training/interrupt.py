"""Ctrl-C during training: the step under way is finished, so that what is saved is a whole step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StepInterrupt(KeyboardInterrupt):
    """Ctrl-C, seen between two steps."""


@contextmanager
def whole_steps(enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C waits until the yielded function is called, which then raises StepInterrupt.

    A second one is a KeyboardInterrupt at once. Not `enabled`, or outside the main thread, where no handler can be
    set, Ctrl-C stays what it is.
    """
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def step_over() -> None:
        if asked:
            raise StepInterrupt

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield step_over
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield step_over
    finally:
        signal.signal(signal.SIGINT, before)
