"""Manners on the terminal, shared by all commands.

Results go to stdout (with --json: one document and nothing else), everything else to stderr.
An error is one line and an exit status: 1 when something failed, 2 when the command was not
understood. `--debug` anywhere on the line shows the traceback instead; `--quiet` leaves results and
errors alone.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from ..errors import TiueError
from ..io.messages import TORCH, one_line, without_torch
from .config import defaults

PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "batch": {
        "The list": (
            *("seed", "count", "decoders", "combinations", "most", "wildcards", "loras"),
            *("read_as", "encoding", "strict"),
        ),
        "What is written": ("out", "names", "image_format", "metadata", "sheet", "index"),
        "The run": (
            *("dry_run", "retry_failed", "batch_size", "engine", "actors", "ray_address"),
            *("device", "dtype"),
        ),
        "The student": ("student", "steps", "base", "accept_license"),
    },
}
"""Options of commands that have many, in groups for their help."""


class Failed(TiueError):
    """An error after part of the work was done: `result` says what exists, for --json."""

    def __init__(self, message: str, result: dict[str, Any], status: int = 1) -> None:
        super().__init__(message)
        self.result, self.status = result, status


_quiet = False  # whether `--quiet` was given


def run(app: typer.Typer, arguments: list[str], commands: Sequence[str] = ()) -> int:
    """Run a typer app as described above; return the exit status.

    Args:
        commands: names of all commands, also of those that are not in ``app``.
    """
    global _quiet
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug, machine = "--debug" in own, "--json" in own
    _quiet = "--quiet" in own or "-q" in own
    everywhere = ("--debug", "--quiet", "-q")
    arguments = [word for word in own if word not in everywhere] + arguments[len(own) :]

    def fail(message: str, status: int, result: dict[str, Any] | None = None) -> int:
        if debug:
            traceback.print_exc()
        if machine:
            emit({**(result or {}), "error": message})
        say(f"error: {message}", "red")
        return status

    try:
        with clean_warnings(debug):
            group: Any = typer.main.get_command(app)
            _arrange(group.commands)
            settings = {"default_map": defaults(commands, group), "auto_envvar_prefix": "TIUE"}
            status = group(args=arguments, standalone_mode=False, prog_name="tiue", **settings)
        if status == 130:  # how typer reports Ctrl-C
            return fail("stopped", 130)
        return status if isinstance(status, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return fail("stopped", 130)
    except TiueError as error:
        return fail(str(error), getattr(error, "status", 1), getattr(error, "result", None))
    except Exception as error:
        missing = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and missing in TORCH:
            return fail(without_torch(missing), 1)
        if hasattr(error, "format_message"):  # typer's usage errors, whichever click it stands on
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "tiue"
            message = one_line(error.format_message()).rstrip(".")
            paint = (
                f', or tiue generate "{own[0]}"' if message.startswith("No such command") else ""
            )
            return fail(f"{message}: see `{command} --help`{paint}", 2)
        text = f"{type(error).__name__}: {one_line(str(error))}"
        return fail(f"unexpected {text}: run again with --debug and report it", 1)


def _arrange(commands: Mapping[str, Any]) -> None:
    """Put options into their groups; those left out stay in the general one."""
    for name, command in commands.items():
        groups = PANELS.get(name, {}).items()
        panels = {option: panel for panel, options in groups for option in options}
        for option in command.params:
            option.show_envvar = False  # one rule for all of them, told once
            if option.name in panels:
                option.rich_help_panel = panels[option.name]


def one_of(option: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a value that is not one of those allowed."""
    if value not in allowed:
        raise typer.BadParameter(f"{value}: give {' or '.join(allowed)}", param_hint=option)


def say(message: str, colour: str = "") -> None:
    """One line to stderr; its first word in colour where that is a terminal."""
    if _quiet and not message.startswith("error:"):
        return
    line = one_line(message)
    if colour and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        first, space, rest = line.partition(" ")
        line = typer.style(first, fg=colour, bold=True) + space + rest
    print(line, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """The JSON document to stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str), flush=True)


@contextmanager
def clean_warnings(debug: bool = False) -> Iterator[None]:
    """Show each UserWarning once, as one line; keep the libraries' chatter for --debug."""
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = one_line(str(message))
        if text not in said and (debug or category is UserWarning):
            said.add(text)
            say(f"warning: {text}", "yellow")

    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr (none where that is not a terminal); yields `advance(by)`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if total is not None:
        columns[2:2] = [MofNCompleteColumn()]
        columns += [TextColumn("left"), TimeRemainingColumn()]
    shown = console.is_terminal and not _quiet
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total)
        yield lambda by: bar.advance(task, by)


def log_training() -> None:
    """The trainer's log lines, and other libraries' warnings, on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tiue").setLevel(logging.INFO)


def tell_update(done: int, total: int, values: Mapping[str, float]) -> None:
    """A line of a training's figures."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    say(f"{done}/{total}  {figures}")


def ask_license(accepted: bool) -> bool | Callable[[str], bool]:
    """How `--accept-license` and the terminal answer for a licence; see `students.find`."""

    def ask(terms: str) -> bool:
        say(f"licence of {terms}")
        return accepted or typer.confirm("Accept it and download?", default=False, err=True)

    return ask if accepted or (sys.stdin.isatty() and sys.stderr.isatty()) else False
