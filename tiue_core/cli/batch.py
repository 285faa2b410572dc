"""`tiue batch LIST --out DIR`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from .batch_terminal import TOLD, Session, clock, share
from .options import AcceptLicense, Base, Debug, Device, Dtype, Json, Steps


def register(app: typer.Typer) -> None:
    app.command()(batch)


def batch(
    prompts: Annotated[Path, typer.Argument(metavar="LIST", help=".txt, .csv, .jsonl or .yaml.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")
    ] = Path("out"),
    student: Annotated[
        str, typer.Option(help="Name, folder, .safetensors file or hub id.")
    ] = "stickers",
    names: Annotated[
        str, typer.Option(metavar="TEMPLATE", help="Names of files; / makes folders.")
    ] = "{index}_{slug}_{seed}",
    image_format: Annotated[
        str, typer.Option("--format", help="png, jpeg or webp.", metavar="FORMAT")
    ] = "png",
    seed: Annotated[
        int | None,
        typer.Option(show_default="each row's own", help="Of rows that have no seed."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Pictures of rows that have no count.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(help="Pictures per pass.")] = 8,
    decoders: Annotated[str, typer.Option(help="exact or fast, where a row does not say.")] = (
        "exact"
    ),
    steps: Steps = None,
    combinations: Annotated[
        bool, typer.Option("--combinations", help="Make every combination of {a|b} and __file__.")
    ] = False,
    most: Annotated[
        int, typer.Option("--max-combinations", help="More of one row are refused.")
    ] = 100_000,
    wildcards: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of __file__ wildcards.")
    ] = None,
    subject: Annotated[
        str, typer.Option("--prompt", help="What {prompt} in a row stands for, as in styles.")
    ] = "",
    loras: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder where LoRAs are found by name.")
    ] = None,
    read_as: Annotated[
        str | None, typer.Option(help="txt, csv, jsonl or yaml, whatever the file is called.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(show_default="UTF-8", help="Of the list, such as cp1252.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Make nothing if any row is bad.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be made, and how long it takes.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="In the pictures.")
    ] = True,
    sheet: Annotated[bool, typer.Option("--sheet/--no-sheet", help="Contact sheets.")] = True,
    index: Annotated[bool, typer.Option("--index/--no-index", help="index.html.")] = True,
    engine: Annotated[
        str,
        typer.Option(
            help="ray for many machines; here torch, onnxruntime, openvino, or local, the fastest."
        ),
    ] = "local",
    actors: Annotated[
        int | None, typer.Option(show_default="one per GPU", help="With --engine ray.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, such as auto.")
    ] = None,
    base: Base = None,
    device: Device = None,
    dtype: Dtype = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Paint a list of prompts into a folder; run again, it goes on where it stopped.

    Example: tiue batch prompts.csv --out out

    Example: tiue batch prompts.csv --dry-run
    """
    from ..batch.lists import KINDS
    from ..core.arguments import DECODERS
    from ..io.files import check_writable
    from ..io.images import SUFFIXES
    from ..optimize.engines import CHOICES
    from .console import ask_license, one_of, progress

    image_format = {"jpg": "jpeg"}.get(image_format.lower(), image_format.lower())
    one_of("--format", image_format, SUFFIXES)
    one_of("--decoders", decoders, DECODERS)
    one_of("--engine", engine, ("local", "ray", *CHOICES))
    if read_as is not None:
        one_of("--read-as", read_as, KINDS)
    for option, value in (("--count", count), ("--batch-size", batch_size), ("--actors", actors)):
        if value is not None and value < 1:
            raise typer.BadParameter(f"{value}: give 1 or more", param_hint=option)
    if seed is not None and not 0 <= seed < 2**63:
        raise typer.BadParameter(f"{seed}: give a number from 0", param_hint="--seed")
    # Whatever can be wrong is looked at before torch is imported, which takes seconds.
    from ..batch.lists import kind_of, once, read_list

    source_of_list = once(prompts, encoding=encoding)
    if isinstance(source_of_list, str):  # a pipe has no suffix
        read_as = read_as or (kind_of(prompts) if prompts.suffix else "txt")
    else:
        read_list(prompts, kind=read_as, encoding=encoding)
    from ..students.resolve import completed, find

    source = find(student, accept_license=ask_license(accept_license))
    if not dry_run:
        check_writable(out)
    from ..batch.options import RunOptions
    from ..batch.session import BatchSession, dtype_before

    plan = RunOptions(
        source_of_list,
        kind=read_as,
        encoding=encoding,
        names=names,
        seed=seed,
        count=count,
        combinations=combinations,
        wildcards=wildcards,
        limit=most,
        loras=loras,
        decoders=decoders,
        batch_size=batch_size,
        subject=subject,
        format=image_format,
        metadata=metadata,
        retry_failed=retry_failed,
    )
    ours = share(device)
    with ExitStack() as ends:
        options: dict[str, Any] = {"mine": ours.mine, "together": ours.together}
        with progress("loading", None):
            if engine == "ray":
                from ..batch.rays import RayPainter, WorkerOptions
                from .console import say

                digest = completed(source, base).content_hash()
                # The precision too: it is part of what a picture is, on any machine.
                order = WorkerOptions(
                    student, digest, device, dtype or "float32", steps, base, image_format, metadata
                )
                painter = RayPainter(order, actors=actors, address=ray_address, report=say)
                ends.callback(painter.close)
                options["engine"] = painter.engine
                studio = BatchSession(painter, painter.settings)
            else:
                studio = BatchSession.open(
                    source,
                    device=ours.device,
                    dtype=dtype,
                    steps=steps,
                    base=base,
                    engine="auto" if engine == "local" else engine,
                    before=dtype_before(out),
                )
        if dry_run:
            return _dry_run(plan, studio, out, json)
        if strict:
            _refuse_bad_rows(plan, studio)
        Session(plan, studio, out, ours, json).go(options, sheet, index)


def _refuse_bad_rows(plan: Any, studio: Any) -> None:
    from .console import Failed, say

    bad = plan.bad_rows(studio.settings)
    for row in bad[:TOLD]:
        say(str(row))
    if bad:
        raise Failed(
            f"{len(bad)} bad rows, nothing was made: mend them, or leave --strict out",
            {"bad_rows": [vars(row) for row in bad]},
        )


def _dry_run(plan: Any, studio: Any, out: Path, as_json: bool) -> None:
    """What would be made: counted, the first ones by name, and the time it takes."""
    from ..batch.jobs import Job
    from ..batch.manifest import Manifest, State
    from ..io.images import SUFFIXES
    from .console import Failed, emit, say

    manifest = Manifest(out, plan.fingerprint(), SUFFIXES[plan.format])
    counts = {"to_make": 0, "there": 0, "again": 0, "bad_rows": 0}
    first: list[dict[str, Any]] = []
    bad: list[Any] = []
    for job in plan.jobs(studio.settings):
        if not isinstance(job, Job):
            counts["bad_rows"] += 1
            if len(bad) < TOLD:
                bad.append(job)
            continue
        state = manifest.state(job.id)
        manifest.mark(job.id, State.SEEN)
        name = "again" if state & State.SEEN else "there" if state & State.MADE else "to_make"
        counts[name] += 1
        if name == "to_make" and len(first) < 5:
            first.append({"file": job.file, "prompt": job.prompt, "seed": job.seed})
    each = studio.seconds_per_picture(plan) if counts["to_make"] else None
    seconds = each * counts["to_make"] if each else 0.0
    for row in bad:
        say(str(row))
    if as_json:
        rows = [vars(row) for row in bad]
        result = {**counts, "seconds": round(seconds, 1), "first": first, "rows": rows}
        if not counts["bad_rows"]:
            return emit(result)
        raise Failed(f"{counts['bad_rows']} bad rows", result)
    print(
        f"{counts['to_make']} pictures to make, {counts['there']} there, "
        f"{counts['again']} twice in the list, {counts['bad_rows']} bad rows"
    )
    if each:
        print(f"about {clock(seconds)} at {1 / each:.2f} images/s on {studio.painter.device}")
    for one in first:
        print(f"  {one['file']}  {one['prompt']}")
    if counts["bad_rows"]:
        raise Failed(f"{counts['bad_rows']} bad rows: mend them, or they are left out", {})
