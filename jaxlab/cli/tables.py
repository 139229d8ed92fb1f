"""Tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> None:
    """Prints rows under the keys of all of them; only a terminal's width makes cells wrap."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[format_cell(row.get(column)) for column in columns] for row in rows]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table, markup=False, highlight=False)


def format_cell(value: Any) -> str:
    """A number to five significant digits, None as a dash, anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    return str(value)
