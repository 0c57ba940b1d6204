"""What every command shares: errors of one line, tables, and progress that reads well in a log."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BadInput", "Finite", "OneLineErrors", "Progress", "print_table", "table", "terminal_width", "user_input"]

_LOG_WIDTH = 150


class BadInput(click.ClickException):
    """What a person asked for cannot be done; shown in one line, exit status 2."""

    exit_code = 2


class Finite(click.FloatRange):
    """A finite number within a range; `FloatRange` lets what is no number pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, if it is one."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class OneLineErrors(click.Group):
    """A group whose errors are one line on stderr and exit status 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command, and in standalone mode turn every click error into its one line."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")  # a terminal without a plus-minus sign must not lose a run
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            _stop(f"Error: {' '.join(error.format_message().split())}", 2)
        except OSError as error:
            _stop(f"Error: {error}.", 2)
        except click.Abort:
            _stop("Stopped: nothing was written.", 130)
        sys.exit(status if isinstance(status, int) else 0)


def _stop(line: str, status: int) -> NoReturn:
    click.echo(line, err=True)
    sys.exit(status)


@contextmanager
def user_input(what: str = "") -> Iterator[None]:
    """Report a ValueError, TypeError, OSError or OverflowError as bad input, prefixed by what was being read."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError) as error:
        text = str(error) or type(error).__name__
        raise BadInput(f"{what}: {text}" if what else text) from None


def table(title: str, columns: list[str], left: int = 1) -> Table:
    """An empty table whose first `left` columns are text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        out.add_column(name, justify="left" if i < left else "right", overflow="fold")
    return out


def terminal_width() -> int:
    """The width of stdout in characters; a generous one where it is not a terminal."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else _LOG_WIDTH


def print_table(item: Any) -> None:
    """Print a table to stdout."""
    from rich.console import Console

    Console(highlight=False, width=terminal_width()).print(item)


class Progress:
    """Progress on stderr: a bar on a terminal, one line a stage in a log.

    Example:
        >>> with Progress(2, quiet=True) as progress:
        ...     progress.advance("first half")
        ...     progress.advance("second half")
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        """Prepare for `total` calls of `advance`."""
        self.total, self.quiet, self.done, self.bar, self.task = total, quiet, 0, None, None
        self.start = time.perf_counter()

    def __enter__(self) -> Progress:
        """Show the bar, if stderr is a terminal."""
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal and not self.quiet:
            shown = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
            self.bar = progress.Progress(*shown, progress.TimeElapsedColumn(), console=console, transient=True)
            self.task = self.bar.add_task("starting", total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Name what is being done now."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=text)

    def advance(self, text: str) -> None:
        """Note that `text` is done."""
        self.done += 1
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, description=text)
        elif not self.quiet:
            seconds = time.perf_counter() - self.start
            click.echo(f"[{seconds:5.1f} s] {self.done}/{self.total} {text}", err=True)
