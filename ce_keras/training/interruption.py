"""Ends of a run by SIGTERM or Ctrl-C, after which the same command resumes it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Preempted(SystemExit):
    """The run was asked to end by SIGTERM. Exit code 75: try again.

    Attributes:
        saved: whether its state could be saved.
    """

    def __init__(self, saved: bool = True) -> None:
        super().__init__(75)
        self.saved = saved


class Interrupted(KeyboardInterrupt):
    """The run was interrupted by Ctrl-C.

    Attributes:
        saved: whether its state could be saved.
    """

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.saved = saved


class Termination:
    """Records SIGTERM and Ctrl-C, so that a run can end between two steps.

    A second Ctrl-C ends the process at once. Outside the main thread no signal is handled.
    """

    #: Makes the exception that says how the run was ended, and whether it is saved.
    reason: Callable[[bool], BaseException] = Preempted

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether the run is asked to end."""
        return self._requested.is_set()

    def _record(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._requested.is_set():
                raise KeyboardInterrupt
            self.reason = Interrupted
        self._requested.set()
