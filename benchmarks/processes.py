"""Commands with a time limit, each in a process group of its own that ends with it.

A step that is cut must not leave children behind: they would go on computing beside whatever is
timed next. What a command prints is passed on line by line, so nothing is lost where it is cut.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

GRACE = 2.0  # seconds that a group has to end by itself, to store what it knows
POLL = 0.05

Clock = Callable[[], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A command and the seconds it may take at most.

    Attributes:
        consequence: what it means for the steps that follow if this one does not succeed.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    environment: tuple[tuple[str, str], ...] = ()
    consequence: str = ""


def python(*arguments: str) -> tuple[str, ...]:
    """A command line of this Python: a module and its arguments."""
    return sys.executable, "-W", "ignore", "-m", *arguments


def start(
    command: tuple[str, ...], folder: Path, environment: dict[str, str], *, own_group: bool
) -> subprocess.Popen:
    """A process whose output, errors among it, is a pipe.

    Args:
        own_group: it leads a new process group; else it ends with this process's.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=own_group,
    )


def pass_on(process: subprocess.Popen, say: Say) -> threading.Thread:
    """A running thread that says what the process prints, line by line."""

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def side_by_side(
    commands: Iterable[tuple[str, ...]], say: Say, folder: Path, environment: dict[str, str]
) -> bool:
    """Whether all commands succeed, run at the same time, in this process's group, with which they
    are ended where time is up."""
    running = []
    for command in commands:
        process = start(command, folder, environment, own_group=False)
        running.append((process, pass_on(process, say)))
    passed = True
    for process, reader in running:
        passed &= process.wait() == 0
        reader.join()
    return passed


def end_group(process: subprocess.Popen) -> None:
    """End whatever is left of a process's group: asked first, killed after `GRACE`. One that not
    even that ends, as in a driver that hangs, is left behind."""
    for wish in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, wish)
        except ProcessLookupError:  # nobody is left
            break
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and _alive(process):
            time.sleep(POLL)


def _alive(process: subprocess.Popen) -> bool:
    process.poll()  # else the leader stays as a zombie, which counts as a member
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(
    step: Step,
    limit: float,
    say: Say,
    folder: Path,
    clock: Clock = time.monotonic,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Run a step's command for `limit` seconds at most.

    Args:
        stopped: whether to end it before.

    Returns:
        "done", or "failed with status N", "cut after N s" or "interrupted" and the consequence.
    """
    end = clock() + limit
    process = start(step.command, folder, dict(step.environment), own_group=True)
    reader = pass_on(process, say)
    try:
        while (status := process.poll()) is None and clock() < end and not stopped():
            time.sleep(POLL)
    finally:
        end_group(process)
        reader.join(GRACE)
    if status == 0:
        return "done"
    if status is not None:
        result = f"failed with status {status}"
    else:
        result = "interrupted" if stopped() else f"cut after {limit:.0f} s"
    return f"{result}: {step.consequence}" if step.consequence else result
