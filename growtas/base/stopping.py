"""SIGINT and SIGTERM: an exception where nothing is lost, a wish that waits where something is.

Only the command handles signals (`handled`). A loop that can go on later from where it stands
postpones them (`postponed`), looks for them (`wanted`), saves and raises `Stopped`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# A worker process that was told to end, and is not wanted any more either, ends after so long.
_WORKER_SECONDS = 30.0


class Stopped(KeyboardInterrupt):
    """A signal asked for an end.

    Args:
        signum: which one.
        text: what was saved and how to go on.
    """

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The shell's code for it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


@dataclass
class _State:
    handled: bool = False
    postponed: bool = False
    signum: int = 0  # the first signal that came; 0: none


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM raise `Stopped`, or wait where they are `postponed`.

    Outside the main thread, which alone may handle signals, it does nothing; neither to a signal
    that the process was started to ignore. Handlers are put back at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    mine = [s for s, handler in before.items() if handler is not signal.SIG_IGN]
    _state.handled, _state.signum = True, 0
    try:
        for signum in mine:
            signal.signal(signum, _receive)
        yield
    finally:
        for signum in mine:
            signal.signal(signum, before[signum])
        _state.handled = False


@contextmanager
def postponed() -> Iterator[None]:
    """While it lasts, a signal waits for `wanted`; at the end, one that still waits is raised. A
    second SIGINT does not wait."""
    _state.postponed = True
    try:
        yield
    finally:
        _state.postponed = False
    if _state.handled and _state.signum:
        raise Stopped(_state.signum)


def is_handled() -> bool:
    """Whether signals come this way at all; the same on all processes of a run."""
    return _state.handled


def wanted() -> int:
    """The signal that waits; 0 if there is none."""
    return _state.signum if _state.handled else 0


def in_worker(worker: int) -> None:
    """For processes that read images: a signal to the whole group must not take away the batches
    that the training process still wants. It ends them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(signum: int, frame: FrameType | None) -> None:
    timer = threading.Timer(_WORKER_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _receive(signum: int, frame: FrameType | None) -> None:
    first = not _state.signum
    if first:
        _state.signum = signum
    elif signum == signal.SIGTERM:
        return  # torchrun and the job's manager both send it
    if not (first and _state.postponed):
        raise Stopped(signum)
