"""What a person sees of a training while it runs: a progress bar, or lines."""

from __future__ import annotations

from collections.abc import Callable

from growtas.training.optional import require


class Progress:
    """A bar over the steps of a run; without one, only what is told appears, as lines.

    Args:
        steps: of the whole run.
        done: of these, before this call.
        bar: draw the bar (needs tqdm).
        say: receives what is told if there is no bar; None for nobody.
    """

    def __init__(
        self, steps: int, done: int, *, bar: bool, say: Callable[[str], None] | None
    ) -> None:
        self._say = say
        self._bar = None
        if bar:
            tqdm = require("tqdm", "train").tqdm
            self._bar = tqdm(total=steps, initial=done, unit="step")

    def step(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, place: str, loss: float, accuracy: float, images_per_second: float) -> None:
        """Figures beside the bar: mean loss and accuracy (0 to 1) so far in the epoch."""
        if self._bar is not None:
            self._bar.set_description(place)
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, accuracy {accuracy:.3f}, {images_per_second:.0f} images/s"
            )

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
