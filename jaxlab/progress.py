"""What a person sees while a run is going: stages with a bar, a rate and the figure that matters.

On a terminal each stage is a rich progress bar; elsewhere (a log file, a test) it is one line when the stage
ends. Both go to standard error, so that standard output carries results alone.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress


class Stage:
    """One stage of a run, advanced by the code that does the work."""

    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._skipped = 0.0
        self.figures: dict[str, object] = {}
        self._started = time.monotonic()
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def advance(self, amount: float = 1, **figures: object) -> None:
        """Counts `amount` more units as done, and shows `figures` (say `ppl=19.8`)."""
        self.done += amount
        self.figures.update(figures)
        if self._bar is not None:
            live, task = self._bar
            live.update(task, completed=self.done, figures=self.text())

    def skip(self, amount: float) -> None:
        """Counts units that an earlier, interrupted run did: part of the bar, not of the rate."""
        self._skipped += amount
        self.advance(amount)

    def show(self, **figures: object) -> None:
        """Shows figures without counting anything as done."""
        self.advance(0, **figures)

    def text(self) -> str:
        """Rate and figures, for instance `412 tokens/s, ppl 19.8`."""
        parts = [f"{name} {_figure(value)}" for name, value in self.figures.items()]
        if self.unit and self.done > self._skipped:
            parts.insert(0, f"{_figure((self.done - self._skipped) / self.seconds)} {self.unit}/s")
        return ", ".join(parts)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the stage began."""
        return max(time.monotonic() - self._started, 1e-9)


class Progress:
    """Shows stages on a terminal or in a log; pass one object down a whole run."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        """Args:
        quiet: show nothing at all.
        stream: where to; None means standard error.
        """
        self._quiet = quiet
        self._stream = stream
        self._live: rich.progress.Progress | None = None

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None, *, unit: str = "") -> Iterator[Stage]:
        """Opens a stage; stages may be nested.

        Args:
          name: what is being done, for instance "quantizing layers".
          total: how many units there are, None if unknown.
          unit: what is counted ("tokens", "layers"); shown as a rate.

        Yields:
          The stage: call `advance(n, figure=value)` on it.
        """
        stage = Stage(name, total, unit)
        stream = self._stream or sys.stderr
        if self._quiet:
            yield stage
        elif stream.isatty():
            with self._bars(stream) as live:
                task = live.add_task(name, total=total, figures="")
                stage._bar = (live, task)
                try:
                    yield stage
                finally:
                    live.update(task, figures=stage.text())
                    live.stop_task(task)
        else:
            yield stage
            count = "" if not stage.done else f"{_figure(stage.done)}{' ' + unit if unit else ''} in "
            text = stage.text()
            stream.write(f"{name}: {count}{stage.seconds:.1f} s{', ' + text if text else ''}\n")
            stream.flush()

    def note(self, text: str) -> None:
        """Shows one line of text beside the bars."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            stream = self._stream or sys.stderr
            stream.write(text + "\n")
            stream.flush()

    @contextlib.contextmanager
    def _bars(self, stream: TextIO) -> "Iterator[rich.progress.Progress]":
        if self._live is not None:
            yield self._live
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Bars(*columns, console=Console(file=stream)) as live:
            self._live = live
            try:
                yield live
            finally:
                self._live = None


def _figure(value: object) -> str:
    """A number in few characters (19.824, 1.2e-05, 20480); anything else as it is."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return str(value)
    number = float(value)
    if number.is_integer() or abs(number) >= 1000:
        return f"{number:.0f}"
    return f"{number:.5g}"
