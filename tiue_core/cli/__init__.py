"""The `tiue` command.

This module is read before the first line is shown, so it imports nothing heavy: torch, diffusers
and transformers are imported inside the commands.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from .. import __version__
from .console import emit, run, say
from .options import Debug, Json

COMMANDS = {
    "generate": ".generate",
    "batch": ".batch",
    "app": ".app",
    "export": ".export",
    "cache": ".cache",
    "distill": ".distill",
    "lora": ".lora",
    "stickers": ".stickers",
    "evaluate": ".evaluate",
    "bench": ".bench",
}
"""Modules with a `register(app)` that adds a command; cheap to import."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(build(words), words, (*COMMANDS, "students")))


def build(words: Sequence[str] = ()) -> typer.Typer:
    """The app: with the command that ``words`` begin with, or with all."""
    app = typer.Typer(
        name="tiue",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    wanted = [words[0]] if words and words[0] in COMMANDS else list(COMMANDS)
    for name in wanted:
        import_module(COMMANDS[name], __name__).register(app)
    app.command("students")(students)
    return app


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version and stop.", allow_from_autoenv=False
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Say nothing but results and errors.", allow_from_autoenv=False
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks and all warnings.", allow_from_autoenv=False),
    ] = False,
) -> None:
    """One-pass text-to-image students: pictures from words in a single pass of the UNet.

    Example: tiue generate "a cat on a blue background" --seed 0 -n 4 -o out

    Any option can have a default of yours: TIUE_GENERATE_OUT=pictures, or 'generate:' with
    'out: pictures' below it in ~/.config/tiue/config.yaml ($TIUE_CONFIG).
    """
    if version:
        print(f"tiue {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def students(json: Json = False, debug: Debug = False) -> None:
    """List the students that are here or can be had, and the systems to compare them with.

    Example: tiue students --json
    """
    from ..students import resolve as library

    rows = library.overview()
    others = _systems()
    if json:
        return emit([*rows, *others])
    for row in rows:
        state = "here" if row["here"] else "can be downloaded" if row["hub_id"] else "missing"
        print(f"{row['name']}  [{state}]\n  {row['about']}\n  {row['licence']}")
        if row["revision"]:
            print(f"  revision {row['revision']}")
    print("\nto compare with (tiue generate --system NAME, tiue evaluate):")
    for row in others:
        print(f"{row['name']}  [{'here' if row['here'] else 'not here'}]  {row['licence']}")
    say("a diffusers folder, a .safetensors file or any hub id also serves as --student")


def _systems() -> list[dict[str, Any]]:
    """Every system that is not in the list of students by the same name."""
    from ..baselines.find import overview
    from ..students import resolve as library

    return [row for row in overview() if row["name"] not in (*library.REGISTRY, "images")]
