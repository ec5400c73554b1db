"""What a person sees of long work: a progress bar on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from growtas.base.optional import require

# Lines come at most so often, so that a log of a long run can be read.
_SECONDS = 30.0


class Progress:
    """How far a work of many steps is, on stderr: a bar if that is a terminal, else lines without
    carriage returns, the first and the last figures and at most one line in 30 seconds between.

    Args:
        total: steps of the whole work.
        done: of these, before this call.
        unit: what a step is called.
        show: whether to show any of it (a bar needs tqdm).
        say: receives what is told if there is no bar; None for nobody.
    """

    def __init__(
        self,
        total: int,
        done: int,
        *,
        unit: str,
        show: bool,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.total = total
        self.done = done
        self.unit = unit
        self._say = say
        self._lines = show and not sys.stderr.isatty()
        self._shown_at: float | None = None
        self._bar = None
        if show and not self._lines:
            tqdm = require("tqdm", "train").tqdm
            self._bar = tqdm(total=total, initial=done, unit=unit)

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()

    def show(self, place: str, figures: str) -> None:
        """Where the work is, and its figures so far."""
        if self._bar is not None:
            self._bar.set_description_str(place)
            self._bar.set_postfix_str(figures)
        elif self._lines:
            now = time.monotonic()
            due = self._shown_at is None or now - self._shown_at >= _SECONDS
            if due or self.done >= self.total:
                self._shown_at = now
                line = f"{self.done}/{self.total} {self.unit}s, {place}: {figures}"
                print(line, file=sys.stderr, flush=True)

    def tell(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(line)
        elif self._say is not None:
            self._say(line)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
