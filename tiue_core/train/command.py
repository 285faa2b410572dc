"""``tiue distill RECIPE.yaml``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def distill(
        recipe: Annotated[Path, typer.Argument(help="The recipe: one stage of training, YAML.")],
        json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Train what a recipe describes; run again, it goes on from its last checkpoint.

        Example: tiue distill tiue_core/stickers/recipes/5-student.yaml
        """
        import json
        import time

        from .recipe import load_recipe
        from .run import run

        checked = load_recipe(recipe)
        started = time.monotonic()

        def progress(done: int, total: int, values: dict[str, float]) -> None:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            minutes = (time.monotonic() - started) / 60
            print(f"{done}/{total}  {minutes:.1f} min  {figures}", file=sys.stderr, flush=True)

        result = run(checked, progress)
        print(json.dumps({"result": str(result)}) if json_output else f"Written: {result}")
