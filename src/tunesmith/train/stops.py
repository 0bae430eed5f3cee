"""A polite stop: the first signal lets the step under way finish and be saved, the second stops at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tunesmith.progress import say
from tunesmith.team import here

SIGNALS = (signal.SIGTERM, signal.SIGINT)


ONE_SIGNAL = 10.0
"""Seconds in which one of several processes takes a signal for the same: a scheduler sends it to all that it sees, and
the launcher among them passes it on."""


class Stop:
    """Whether somebody asked training to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._at = 0.0

    def request(self, number: int, frame: FrameType | None) -> None:
        """Take a signal.

        Raises:
            KeyboardInterrupt: it is the second one.
        """
        now = time.monotonic()
        if self.requested:
            if here().size > 1 and now - self._at < ONE_SIGNAL:
                return
            raise KeyboardInterrupt
        self.requested, self._at = True, now
        say(f"\n  {signal.Signals(number).name}: stopping after this step; once more stops at once")


@contextmanager
def polite_stops() -> Iterator[Stop]:
    """Take SIGTERM and SIGINT as requests while the block runs; elsewhere than in the main thread they pass by."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
