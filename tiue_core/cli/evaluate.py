"""``tiue evaluate``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AcceptLicense, Device, Dtype, Json

PACKAGES = ("torchmetrics", "prdc", "scipy", "sklearn")


def register(app: typer.Typer) -> None:
    @app.command()
    def evaluate(
        systems: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="SYSTEM...",
                help="NAME, NAME:FILE+FILE or LABEL=...; by default all of the miniature.",
            ),
        ] = None,
        data: Annotated[
            str | None,
            typer.Option(
                help="stickers, coco2014-30k, coco2017-5k, drawbench, partiprompts, afhq, "
                "celeba-hq, or a list's path. Without it: the model card's figures.",
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option("--out", "-o", help="Folder of the run; without --data, a JSON file."),
        ] = None,
        count: Annotated[
            int | None,
            typer.Option("--count", "-n", min=1, help="So many prompts.", show_default="all"),
        ] = None,
        data_dir: Annotated[
            Path | None, typer.Option(help="Where COCO, AFHQ or CelebA-HQ lies.")
        ] = None,
        prompts: Annotated[Path | None, typer.Option(help="The data set's list.")] = None,
        reference: Annotated[
            str | None,
            typer.Option(help="A folder of pictures, or a system whose samples serve."),
        ] = None,
        features: Annotated[
            str | None,
            typer.Option(
                help="judge, none, or the .safetensors file of FID's Inception.",
                show_default="judge for stickers",
            ),
        ] = None,
        clip: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME=FOLDER", help="clip-b32=FOLDER, clip-g14=FOLDER."),
        ] = None,
        size: Annotated[
            int | None, typer.Option(min=8, help="Side in px.", show_default="each its own")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the first picture.")] = 0,
        batch_size: Annotated[int, typer.Option(min=1, help="Pictures per pass.")] = 8,
        halves: Annotated[
            int, typer.Option(min=0, help="Random halves for 95 % intervals; 0: none.")
        ] = 40,
        diversity: Annotated[
            int, typer.Option(min=0, help="Prompts of the diversity grids; 0: none.")
        ] = 2,
        time: Annotated[bool, typer.Option("--time/--no-time", help="Time and memory.")] = True,
        paper: Annotated[
            bool,
            typer.Option("--paper", help="Tables S1 and S2; with --data, their numbers beside."),
        ] = False,
        list_systems: Annotated[
            bool, typer.Option("--list-systems", help="Every system by name, and stop.")
        ] = False,
        device: Device = None,
        dtype: Dtype = None,
        accept_license: AcceptLicense = False,
        teacher: Annotated[
            str, typer.Option(help="Without --data: the teacher; `none` leaves it out.")
        ] = "stickers-teacher",
        sheet: Annotated[
            Path | None, typer.Option(help="Without --data: a contact sheet of the first student.")
        ] = None,
        json_output: Json = False,
    ) -> None:
        """Hold systems side by side: the same prompts and seeds, one table.

        Example: tiue evaluate --data stickers --out runs/evaluate

        Example: tiue evaluate sd-turbo tiue-sd2.1 --data partiprompts --prompts PartiPrompts.tsv
        --features inception.safetensors --out runs/parti

        Example: tiue evaluate stickers --count 256
        """
        if list_systems:
            return _list_systems(json_output)
        if paper and data is None:
            return _paper(json_output)
        _check_packages()
        if data is None:
            return _model_card(systems, teacher, count or 1024, sheet, out, json_output)
        from ..evaluate.run import Options, Run
        from .console import ask_license, emit, progress, say

        result = Run(
            systems or _miniature(data),
            _data_set(data, count, data_dir, prompts, reference),
            _extractor(features, data, device),
            _clips(clip or [], device),
            Options(
                out or Path("runs/evaluate"),
                seed=seed,
                side=size,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                halves=halves,
                diversity=diversity,
                rounds=Options.rounds if time else 0,
            ),
            progress,
            say,
            ask_license(accept_license),
        ).go()
        from ..evaluate.report import write_report
        from ..evaluate.table import markdown

        folder = out or Path("runs/evaluate")
        written = write_report(result, folder, paper)
        if json_output:
            return emit({**result, "written": [str(path) for path in written]})
        print(markdown(result, paper))
        say(f"pictures, plots and tables: {folder / 'index.html'}")


def _check_packages() -> None:
    from ..errors import TiueError

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise TiueError(f"{', '.join(missing)} is not installed: pip install 'tiue[evaluate]'")


def _list_systems(as_json: bool) -> None:
    from ..baselines.find import overview
    from .console import emit

    rows = overview()
    if as_json:
        return emit(rows)
    for row in rows:
        state = "here" if row["here"] else "a folder" if row["sampler"] == "images" else "not here"
        guided = f", guidance {row['guidance']:g}" if row["guidance"] != 1 else ""
        print(f"{row['name']}  [{state}]\n  {row['about']}{guided}, {row['pixels']} px")
        for part in row["files"]:
            if part["hub_id"]:
                inside = f" ({part['file']})" if part["file"] else ""
                print(f"  {part['kind']}: {part['hub_id']}{inside}")
        print(f"  {row['licence']}")
        if row["note"]:
            print(f"  {row['note']}")


def _paper(as_json: bool) -> None:
    from ..evaluate import paper
    from .console import emit

    if as_json:
        return emit(paper.as_json())
    print(paper.as_markdown())


def _miniature(data: str) -> list[str]:
    """All rows of the miniature: they are part of the package."""
    from ..baselines.registry import MINIATURE
    from ..errors import TiueError

    if data != "stickers":
        raise TiueError("name the systems to compare: see `tiue evaluate --list-systems`")
    return list(MINIATURE)


def _data_set(name: str, count: Any, folder: Any, prompts: Any, reference: Any) -> Any:
    from ..evaluate.data import data_set

    return data_set(name, count=count, folder=folder, prompts=prompts, reference=reference)


def _extractor(features: str | None, data: str, device: str | None) -> Any:
    from ..errors import TiueError
    from ..evaluate.features import inception, judge
    from ..pipelines.load import device_of

    if features == "none":
        return None
    if features == "judge" or (features is None and data == "stickers"):
        return judge(device=device_of(device))
    if features is None:
        raise TiueError(
            "say which features: --features FILE, FID's Inception as .safetensors "
            "(docs/harness.md), or --features none"
        )
    return inception(Path(features).expanduser(), device_of(device))


def _clips(given: list[str], device: str | None) -> list[Any]:
    from ..errors import TiueError
    from ..evaluate.features import CLIPS, clip
    from ..pipelines.load import device_of

    found = []
    for one in given:
        name, _, folder = one.partition("=")
        if name not in CLIPS or not folder:
            raise TiueError(f"--clip {one}: give {' or '.join(f'{key}=FOLDER' for key in CLIPS)}")
        found.append(clip(name, Path(folder).expanduser(), device_of(device)))
    return found


def _model_card(
    students: list[str] | None,
    teacher: str,
    count: int,
    sheet: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """The stickers students as their model card quotes them."""
    import json

    from ..evaluate.stickers import contact_sheet, report
    from ..evaluate.stickers_table import table
    from ..pipelines.base import TiuePipeline
    from ..stickers.judge import Judge

    pipelines = {}
    for student in students or ["stickers"]:
        name, _, source = student.partition("=")
        pipelines[name] = TiuePipeline.from_pretrained(source or name)
    judge = Judge.load()
    first = next(iter(pipelines.values()))
    for pipeline in pipelines.values():  # students are compared, not the decoders they bring
        pipeline.vae = first.vae
    result = report(
        pipelines,
        None if teacher == "none" else TiuePipeline.from_pretrained(teacher),
        judge,
        count=count,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if sheet:
        contact_sheet(first, judge, sheet)
    print(json.dumps(result) if as_json else table(result))
