"""Animations of runs, as GIF files."""

from typing import TYPE_CHECKING, Any

from jaxlab.files import atomic_file
from jaxlab.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation


def save_gif(folder: RunFolder, name: str, film: "FuncAnimation") -> None:
    """Writes `figures/NAME.gif`, whole or not at all."""
    with atomic_file(folder.path / "figures" / f"{name}.gif") as temporary:
        film.save(str(temporary), writer=_writer())


def _writer() -> Any:
    """A writer that does not look at the file's name, which is a temporary one."""
    from matplotlib.animation import PillowWriter

    class Writer(PillowWriter):
        def finish(self) -> None:
            first, *others = self._frames  # type: ignore[attr-defined]  # matplotlib has no types for it
            first.save(self.outfile, format="gif", save_all=True, append_images=others, duration=150, loop=0)

    return Writer(fps=6)
