"""The `tiue` command.

This module is read before the first line is shown, so it imports nothing heavy: torch, diffusers
and transformers are imported inside the commands.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, util
from typing import Annotated, Any

import typer

from .. import __version__
from .console import emit, run, say
from .options import Debug, Json

COMMANDS = (
    ".generate",
    ".batch",
    ".app",
    ".export",
    ".distill",
    ".lora",
    ".stickers",
    ".evaluate",
    ".bench",
)
"""Modules with a `register(app)` that adds their commands; cheap to import."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run the command line and exit with its status."""
    sys.exit(run(build(), list(sys.argv[1:] if arguments is None else arguments)))


def build() -> typer.Typer:
    """The app with all commands that this installation has."""
    app = typer.Typer(
        name="tiue",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_root)
    for name in COMMANDS:
        if util.find_spec(name, __name__) is not None:
            import_module(name, __name__).register(app)
    app.command("students")(students)
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Debug = False,
) -> None:
    """One-pass text-to-image students: pictures from words in a single pass of the UNet.

    Example: tiue generate "a cat on a blue background" --seed 0 --count 4 --out out
    """
    if version:
        print(f"tiue {__version__}")
        raise typer.Exit


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
