"""``tiue bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Debug, Device, Dtype, Json


def register(app: typer.Typer) -> None:
    @app.command()
    def bench(
        shape: Annotated[str, typer.Option(help="sd21, sd15 or stickers.")] = "stickers",
        size: Annotated[
            int | None, typer.Option(show_default="the shape's", help="In pixels, of a square.")
        ] = None,
        batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
        device: Device = None,
        dtype: Dtype = None,
        layout: Annotated[str, typer.Option(help="channels_last or contiguous.")] = (
            "channels_last"
        ),
        rounds: Annotated[int, typer.Option(min=1, help="Every system paints so often.")] = 5,
        systems: Annotated[
            str, typer.Option(show_default="all", help="Names with commas, of the first column.")
        ] = "",
        graphs: Annotated[
            bool, typer.Option("--graphs", help="Also as one graph: onnxruntime, torch.compile.")
        ] = False,
        cuda_graphs: Annotated[
            bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU.")
        ] = True,
        batches: Annotated[
            str, typer.Option(help="Batch sizes for images per second, such as 1,4,16.")
        ] = "",
        threads: Annotated[
            int | None, typer.Option(min=1, show_default="all", help="Of a CPU.")
        ] = None,
        out: Annotated[
            Path | None, typer.Option("--out", "-o", help="Write the figures here as JSON.")
        ] = None,
        plot: Annotated[Path | None, typer.Option(help="Draw them into this PNG.")] = None,
        json_output: Json = False,
        debug: Debug = False,
    ) -> None:
        """Time this project beside the authors' algorithm and other systems, in one run.

        Example: tiue bench --shape stickers --rounds 9
        """
        from ..errors import TiueError
        from ..io.messages import quiet_libraries
        from .console import emit, progress

        chosen = [name for name in systems.split(",") if name]
        try:
            sizes = [int(word) for word in batches.split(",") if word]
        except ValueError:
            raise TiueError(f"--batches is {batches}: give numbers, such as 1,4,16") from None

        import os

        import torch

        from ..bench.models import Bench
        from ..bench.run import bench as run
        from ..bench.table import draw, table
        from ..pipelines.load import device_of, dtype_of

        quiet_libraries()
        torch.set_num_threads(threads or os.cpu_count() or 1)
        place = device_of(device)
        made = Bench(
            shape, size, place, dtype_of(dtype, place), layout, graphs, capture=cuda_graphs
        )
        unknown = set(chosen) - {system.name for system in made.systems()}
        if unknown:
            names = ", ".join(system.name for system in made.systems())
            raise TiueError(f"no system {', '.join(sorted(unknown))}: give some of {names}")
        total = (rounds + 1) * len(chosen or made.systems())
        with progress("timing", total) as advance:
            result: dict[str, Any] = run(
                made,
                batch=batch,
                rounds=rounds,
                only=chosen,
                batches=sizes,
                say=lambda line: advance(1),
            )
        if out:
            _write(out, result)
        if plot:
            draw(result, plot)
        emit(result) if json_output else print(table(result))


def _write(path: Path, result: dict[str, Any]) -> None:
    import json

    from ..io.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
