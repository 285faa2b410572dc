"""`tiue generate`: prompts, or a picture made earlier, to pictures.

Like every module of commands it imports nothing heavy before a command runs.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import TiueError, out_of_memory
from ..io.messages import quiet_libraries
from .console import (
    Failed,
    ask_license,
    emit,
    progress,
)
from .options import (
    AcceptLicense,
    Base,
    Debug,
    Device,
    Dtype,
    Json,
    Side,
    Steps,
)

_BATCH = 4  # pictures per pass: saved, and counted by the bar, batch by batch


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


@dataclass
class Order:
    """What was asked for: from the command line, or from an image made earlier."""

    prompts: list[str]
    student: str = "stickers"
    seed: int = 0
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    decoders: str = "exact"
    draft: bool = False
    optimize: bool = False
    dtype: str | None = None
    loras: list[Any] = field(default_factory=list)
    student_hash: str | None = None


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", show_default=False)
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(show_default="stickers", help="Name, folder, .safetensors file or hub id."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Another system instead: see `tiue evaluate --list-systems`."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(show_default="0", help="Of the first picture; the next ones count on."),
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures per prompt.")] = 1,
    width: Side = None,
    height: Side = None,
    steps: Steps = None,
    decoders: Annotated[
        str | None,
        typer.Option(
            show_default="exact",
            metavar="exact|fast",
            help="fast leaves out the decoders that hardly count.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:STRENGTH]", help="May be given many times.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the PNGs.")] = Path("out"),
    origin: Annotated[
        Path | None,
        typer.Option("--like", "--from", metavar="IMAGE", help="Make this picture again."),
    ] = None,
    base: Base = None,
    device: Device = None,
    dtype: Dtype = None,
    draft: Annotated[bool, typer.Option("--draft", help="Coarser and sooner: TAESD.")] = False,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Measure and warm up first; for many pictures.")
    ] = False,
    accept_license: AcceptLicense = False,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", help="Run what `tiue export` wrote, without PyTorch."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Paint pictures from prompts; each PNG carries what is needed to make it again.

    Example: tiue generate "a cat on a blue background" --seed 0 --count 4 --out out

    Example: tiue generate --like out/0000_a-cat-on-a-blue-background_0.png
    """
    started = time.monotonic()
    if not prompts and origin is None:
        raise typer.BadParameter('give one in quotes, "" for the empty one', param_hint="PROMPT")
    if count < 1:
        raise typer.BadParameter(f"{count} pictures: give 1 or more", param_hint="--count")
    if graph is not None:
        from .export import paint

        fixed = {"student": student, "steps": steps, "decoders": decoders, "lora": lora or None}
        for name, value in {**fixed, "base": base, "dtype": dtype}.items():
            if value is not None:
                raise TiueError(f"--{name} is fixed in a graph: give it to `tiue export` instead")
        return paint(
            graph,
            [_clean(prompt) for prompt in prompts or []],
            seed=seed,
            count=count,
            width=width,
            height=height,
            out=out,
            origin=origin,
            device=device,
            json=json,
            version=__version__,
        )
    if origin is not None and system is None and student is None:
        system = _system_of(origin)
    if system is not None:
        given = {"student": student, "steps": steps, "decoders": decoders, "lora": lora or None}
        given |= {"base": base, "draft": draft or None, "optimize": optimize or None}
        return _with_system(
            system,
            given,
            origin,
            [_clean(prompt) for prompt in prompts or []],
            {"seed": seed, "width": width, "height": height, "dtype": dtype},
            count=count,
            out=out,
            device=device,
            accept_license=accept_license,
            as_json=json,
        )
    # Whatever can be wrong is looked at before torch is imported, which takes seconds.
    from ..core.arguments import DECODERS
    from ..io.files import check_writable
    from ..students.lora import Lora

    if decoders not in (None, *DECODERS):
        raise typer.BadParameter(
            f"{decoders}: give {' or '.join(DECODERS)}", param_hint="--decoders"
        )
    order = Order([_clean(prompt) for prompt in prompts or []])
    given = {"student": student, "seed": seed, "width": width, "height": height, "steps": steps}
    given["decoders"] = decoders
    order.loras = [Lora.parse(text) for text in lora or []]
    order.draft, order.optimize = draft, optimize
    if origin is not None:
        _remember(order, origin)
    for name, value in {**given, "dtype": dtype}.items():
        if value is not None:
            setattr(order, name, value)
    from ..students import resolve as library

    source = library.find(order.student, accept_license=ask_license(accept_license))
    check_writable(out)
    images, error = _paint(order, source, count, out, device, base, accept_license)
    result = {
        "images": images,
        "student": {"name": source.name, "revision": source.revision},
        "seconds": round(time.monotonic() - started, 3),
    }
    if error is not None:
        raise Failed(str(error), result) from error
    if json:
        emit(result)
    else:
        for image in images:
            print(image["path"])


def _system_of(origin: Path) -> str | None:
    """The system that a picture was made with, if it was none of ours."""
    from ..io.images import read_metadata

    return read_metadata(origin).get("system")


def _with_system(
    system: str,
    fixed: dict[str, Any],
    origin: Path | None,
    prompts: list[str],
    settings: dict[str, Any],
    **options: Any,
) -> None:
    """`--system`, with what the picture of `--from` says where nothing else is said."""
    for name, value in fixed.items():
        if value is not None:
            raise TiueError(f"--{name} is for students: leave it out, or leave --system out")
    if origin is not None:
        from ..io.images import read_metadata

        metadata = read_metadata(origin)
        prompts = prompts or [metadata["prompt"]]
        for name, value in settings.items():
            settings[name] = metadata.get(name) if value is None else value
    from .systems import generate as paint_with

    settings["seed"] = settings["seed"] or 0
    paint_with(system, prompts, **settings, **options)


def _paint(
    order: Order,
    source: Any,
    count: int,
    out: Path,
    device: str | None,
    base: str | None,
    accept_license: bool,
) -> tuple[list[dict[str, Any]], Exception | None]:
    """Paint and save batch by batch; return what was saved, and what stopped it if anything."""
    from concurrent.futures import ThreadPoolExecutor

    from ..io.record import record as record_of

    images: list[dict[str, Any]] = []
    try:
        with ThreadPoolExecutor(1) as pool, progress("loading", None):
            digest = pool.submit(source.content_hash)  # reads the weights while they are loaded
            pipe = _load(order, source, device, base)
            if order.draft:
                pipe.load_draft(accept_license=accept_license)
            record = record_of(
                pipe,
                source,
                digest.result(),
                steps=order.steps,
                decoders=order.decoders,
                draft=order.draft,
                loras=[lora.record() for lora in order.loras],
            )
        if order.student_hash not in (None, record["student_hash"]):
            warnings.warn(
                "that picture was made with other weights, so it may differ", stacklevel=2
            )
        if order.optimize:
            _optimize(pipe, order, min(_BATCH, count * len(order.prompts)))
        seeds = range(order.seed, order.seed + count)
        jobs = [(prompt, seed) for prompt in order.prompts for seed in seeds]
        with progress("painting", len(jobs)) as advance:
            for start in range(0, len(jobs), _BATCH):
                part = jobs[start : start + _BATCH]
                for image in _paint_batch(pipe, order, part, record, out):
                    images.append(image)
                    advance(1)
    except (TiueError, ValueError) as error:  # the pipeline's ValueErrors are one line each
        return images, error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return images, TiueError("out of memory: ask for a smaller --width and --height")
    return images, None


def _load(order: Order, source: Any, device: str | None, base: str | None) -> Any:
    from ..pipelines.load import load
    from ..students.lora import load_loras

    quiet_libraries()
    pipe = load(source, device=device, dtype=order.dtype, base=base)
    pipe.set_progress_bar_config(disable=True)
    load_loras(pipe, order.loras)
    return pipe


def _optimize(pipe: Any, order: Order, batch_size: int) -> None:
    with progress("optimizing", 4) as advance:
        pipe.optimize(
            width=order.width,
            height=order.height,
            batch_size=batch_size,
            progress=lambda done, *_: advance(int(done > 0)),
        )


def _paint_batch(
    pipe: Any, order: Order, jobs: list[tuple[str, int]], record: dict[str, Any], out: Path
) -> Iterator[dict[str, Any]]:
    from ..io.images import save_image

    output = pipe(
        [prompt for prompt, _ in jobs],
        seed=[seed for _, seed in jobs],
        width=order.width,
        height=order.height,
        steps=order.steps,
        decoders=order.decoders,
        draft=order.draft,
    )
    for image, (prompt, seed) in zip(output.images, jobs, strict=True):
        size = {"width": image.width, "height": image.height}
        path = save_image(image, out, {**record, "prompt": prompt, "seed": seed, **size})
        yield {"path": str(path), "prompt": prompt, "seed": seed, **size}


def _remember(order: Order, origin: Path) -> None:
    """Fill `order` from the metadata of a picture, whose LoRA files must have been given."""
    from dataclasses import replace

    from ..io.files import file_hash
    from ..io.images import read_metadata

    metadata = read_metadata(origin)
    if metadata.get("made_in") == "ComfyUI":
        raise TiueError(f"{origin} was made in ComfyUI: drop it onto ComfyUI's page")
    order.prompts = order.prompts or [metadata["prompt"]]
    settings = ("seed", "width", "height", "steps", "decoders", "draft", "dtype")
    for name in ("student", "student_hash", *settings):
        if metadata.get(name) is not None:
            setattr(order, name, metadata[name])
    given = {file_hash(lora.path): i for i, lora in enumerate(order.loras)}
    for made_with in metadata.get("loras") or []:
        index = given.get(made_with["hash"])
        if index is None:
            raise TiueError(f"{origin} was made with LoRA '{made_with['name']}': add --lora FILE")
        order.loras[index] = replace(order.loras[index], strength=made_with["strength"])


def _clean(prompt: str) -> str:
    """Undecodable bytes from the terminal become question marks, as no tokenizer takes them."""
    return prompt.encode("utf-8", "replace").decode("utf-8")
