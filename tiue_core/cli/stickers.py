"""``tiue stickers make``: the miniature from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="The built-in miniature.")
    group.command("make")(make)
    app.add_typer(group, name="stickers")


def make(
    recipes: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPES", help="A folder of recipes.", show_default="the shipped"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it takes, and stop.")] = False,
    json_output: Json = False,
) -> None:
    """Train the miniature, all its stages in a row; run again, it goes on where it stopped.

    Example: tiue stickers make --plan

    Example: tiue stickers make tiue_core/stickers/recipes/full
    """
    import torch

    from ..pipelines.load import device_of
    from ..train import make as series_of
    from .console import emit, log_training, say, tell_update

    log_training()
    series = series_of.stages(recipes or series_of.RECIPES)
    planned = series_of.plan(series, torch.device(device_of(None)))
    for name, seconds in planned:
        say(f"{name}: {f'about {seconds / 60:.0f} minutes' if seconds else 'done'}")
    total = sum(seconds for _, seconds in planned)
    say(f"all of them: about {total / 3600:.1f} hours")
    if plan:
        return emit({"seconds": dict(planned)}) if json_output else None
    results = series_of.make(series, tell_update, say)
    if json_output:
        emit({"results": [str(folder) for folder in results]})
    else:
        print(f"Written: {', '.join(str(folder) for folder in results)}")
