"""``tiue distill RECIPE.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json


def register(app: typer.Typer) -> None:
    @app.command()
    def distill(
        recipe: Annotated[Path, typer.Argument(help="The recipe: one stage of training, YAML.")],
        json_output: Json = False,
    ) -> None:
        """Train what a recipe describes; run again, it goes on from its last checkpoint.

        Example: tiue distill tiue_core/stickers/recipes/5-student.yaml
        """
        from ..train.recipe import load_recipe
        from ..train.run import run
        from .console import emit, log_training, progress, say, tell_update

        log_training()
        checked = load_recipe(recipe)
        with progress(recipe.stem, checked.steps) as advance:
            seen = 0

            def report(done: int, total: int, values: dict[str, float]) -> None:
                nonlocal seen
                advance(done - seen)
                seen = done
                tell_update(done, total, values)

            result = run(checked, report, say)
        if json_output:
            emit({"result": str(result)})
        else:
            print(f"Written: {result}")
