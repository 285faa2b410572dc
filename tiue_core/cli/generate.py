"""`tiue generate`: prompts, or a picture made earlier, to pictures.

Like every module of commands it imports nothing heavy before a command runs.
"""

import secrets
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TiueError
from ..io.files import check_writable
from ..io.images import read_metadata
from ..io.messages import need_torch, quiet_libraries
from .config import configured
from .console import ask_license, progress, say
from .options import (
    AcceptLicense,
    Base,
    Debug,
    Device,
    Dtype,
    Engine,
    Json,
    Quiet,
    Side,
    Steps,
    student_names,
)
from .pictures import BATCH, OTHER_WEIGHTS, Paint, PictureOptions, make


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", show_default=False)
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            show_default="stickers",
            help="Name, folder, .safetensors file or hub id.",
            autocompletion=student_names,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Another system instead: see `tiue evaluate --list-systems`."),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            show_default="0",
            metavar="NUMBER|random",
            help="Of the first picture; the next ones count on.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures per prompt.")] = 1,
    width: Side = None,
    height: Side = None,
    negative: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="What to guide away from.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            show_default="1, none; 2 with --negative",
            help="Classifier-free guidance. Students are trained without.",
        ),
    ] = None,
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
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the PNGs.")
    ] = Path("out"),
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
    engine: Engine = "auto",
    accept_license: AcceptLicense = False,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", help="Run what `tiue export` wrote, without PyTorch."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Paint pictures from prompts; each PNG carries what is needed to make it again.

    Example: tiue generate "a cat on a blue background" --seed 0 -n 4 -o out

    Example: tiue generate --like out/0000_a-cat-on-a-blue-background_0.png
    """
    started = time.monotonic()
    if not prompts and origin is None:
        raise typer.BadParameter('give one in quotes, "" for the empty one', param_hint="PROMPT")
    if count < 1:
        raise typer.BadParameter(f"{count} pictures: give 1 or more", param_hint="--count")
    texts = [_clean(prompt) for prompt in prompts or []]
    _hint_at_quotes(texts)
    given: dict[str, Any] = {"seed": _seed(seed), "width": width, "height": height, "dtype": dtype}
    settings: dict[str, Any] = {"student": student, "steps": steps, "decoders": decoders}
    settings |= {"lora": lora or None, "base": base, "negative": negative, "guidance": guidance}
    metadata: dict[str, Any] = {}
    options = PictureOptions(texts, count=count, out=out, device=device, json=json)
    options.accept_license = accept_license
    if origin is not None:  # a picture says how it was made: no configuration changes that
        for values in (settings, given):
            values |= {name: None for name in values if configured(context, name)}
        metadata = read_metadata(origin)
        options.prompts = texts or [metadata["prompt"]]
        decides = ("seed", "width", "height", "student_hash")
        options.take({name: metadata.get(name) for name in decides})
    if graph is not None:
        _refuse({**settings, "dtype": given.pop("dtype")}, "fixed in a graph", "`tiue export`")
        from . import graphs

        options.take(given)
        return graphs.from_file(graph, options, started)
    if system is None and settings["student"] is None:
        system = metadata.get("system")
    if system is not None:
        switches = {"draft": draft or None, "optimize": optimize or None}
        _refuse({**settings, **switches}, "for students", "a student")
        from . import systems

        options.take({"dtype": metadata.get("dtype"), **given})
        return systems.generate(system, options, started)
    # Whatever can be wrong is looked at before torch is imported, which takes seconds.
    from ..core.arguments import DECODERS, GUIDED
    from ..students.lora import Lora

    if decoders not in (None, *DECODERS):
        raise typer.BadParameter(
            f"{decoders}: give {' or '.join(DECODERS)}", param_hint="--decoders"
        )
    options.base, options.engine = settings.pop("base"), engine
    options.loras = [Lora.parse(text) for text in settings.pop("lora") or []]
    options.draft, options.optimize = draft, optimize
    if origin is not None:
        _remember(options, origin, metadata)
    options.take(settings | given)
    if negative and guidance is None and options.guidance == 1:
        options.guidance = GUIDED
    if options.negative and options.guidance == 1:
        warnings.warn("--negative does nothing at --guidance 1: give more, such as 2", stacklevel=2)
    from ..students.resolve import find

    try:
        licensed = ask_license(accept_license)
        source = find(options.student, accept_license=licensed, base=options.base)
    except TiueError as missing:
        if origin is None or student is not None:
            raise
        name, digest = options.student, (options.student_hash or "")[:10]
        raise TiueError(
            f"{origin} was made with the student '{name}' ({digest}), which is not found by that "
            f"name: add --student FOLDER ({missing})"
        ) from missing
    check_writable(out)
    from . import graphs

    if graphs.from_kept(options, source, started):
        return
    need_torch()
    record: dict[str, Any] = {}

    def prepare() -> tuple[Paint, dict[str, Any]]:
        pipe = _prepared(options, source, record)
        return partial(_paint, pipe, options), record

    about = {"student": {"name": source.name, "revision": source.revision}}
    make(options, prepare, about, started)
    if not (options.loras or options.base or options.draft or device or options.dtype):
        graphs.later(options, record)


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "random":
        return secrets.randbelow(2**32)  # short enough to be read and typed
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}': give a whole number, or random", param_hint="--seed"
        ) from None


def _hint_at_quotes(prompts: list[str]) -> None:
    """A prompt without quotes comes as many prompts of one word."""
    if len(prompts) > 2 and all(len(prompt.split()) == 1 for prompt in prompts):
        quoted = " ".join(prompts)[:60]
        say(f'hint: these are {len(prompts)} prompts; for one picture use quotes: "{quoted}"')


def _refuse(given: dict[str, Any], why: str, where: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise TiueError(f"--{name} is {why}: leave it out, or give it to {where}")


def _prepared(options: PictureOptions, source: Any, record: dict[str, Any]) -> Any:
    """The student, loaded, with what is asked for; fills in what metadata say of its making."""
    from concurrent.futures import ThreadPoolExecutor

    from ..io.record import guidance_record
    from ..io.record import record as record_of

    with ThreadPoolExecutor(1) as pool, progress("loading", None):
        digest = pool.submit(source.content_hash)  # reads the weights while they are loaded
        pipe = _load(options, source)
        record |= record_of(
            pipe,
            source,
            digest.result(),
            steps=options.steps,
            decoders=options.decoders,
            draft=options.draft,
            loras=[lora.record() for lora in options.loras],
        ) | guidance_record(options.guidance, options.negative)
    if options.student_hash not in (None, record["student_hash"]):
        warnings.warn(OTHER_WEIGHTS, stacklevel=2)
    if options.optimize:
        _optimize(pipe, options, min(BATCH, options.count * len(options.prompts)))
    elif options.engine not in ("auto", "torch"):
        named = {name: record[name] for name in ("student", "student_hash")}
        with progress("making a graph, once", None):
            fresh = not options.loras
            pipe.use_graphs(options.engine, record={**named, "loras": []} if fresh else None)
    record |= pipe.facts
    return pipe


def _load(options: PictureOptions, source: Any) -> Any:
    from ..pipelines.load import load
    from ..students.lora import load_loras

    quiet_libraries()
    pipe = load(source, device=options.device, dtype=options.dtype)
    pipe.set_progress_bar_config(disable=True)
    load_loras(pipe, options.loras)
    if options.draft:
        pipe.load_draft(accept_license=options.accept_license)
    return pipe


def _optimize(pipe: Any, options: PictureOptions, batch_size: int) -> None:
    with progress("optimizing", 4) as advance:
        pipe.optimize(
            options.engine,
            width=options.width,
            height=options.height,
            batch_size=batch_size,
            progress=lambda done, *_: advance(int(done > 0)),
        )


def _paint(
    pipe: Any,
    options: PictureOptions,
    prompts: list[str],
    seeds: list[int],
    width: int | None,
    height: int | None,
) -> Any:
    return pipe(
        prompts,
        seed=seeds,
        width=width,
        height=height,
        steps=options.steps,
        decoders=options.decoders,
        draft=options.draft,
        guidance_scale=options.guidance,
        negative_prompt=options.negative or None,
    ).images


def _remember(options: PictureOptions, origin: Path, metadata: dict[str, Any]) -> None:
    """Fill `options` from the metadata of a picture, whose LoRA files must have been given."""
    from dataclasses import replace

    if metadata.get("made_in") == "ComfyUI":
        raise TiueError(f"{origin} was made in ComfyUI: drop it onto ComfyUI's page")
    settings = ("student", "steps", "decoders", "draft", "dtype", "negative", "guidance")
    options.take({name: metadata.get(name) for name in settings})
    options.base = options.base or _base_of(metadata)
    recorded, found = metadata.get("loras") or [], []
    for made_with in recorded:
        lora = next((one for one in options.loras if one.is_one(made_with["hash"])), None)
        if lora is None:
            raise TiueError(f"{origin} was made with LoRA '{made_with['name']}': add --lora FILE")
        found.append(replace(lora, strength=made_with["strength"]))
    known = [one.path for one in found]
    options.loras = found + [one for one in options.loras if one.path not in known]


def _base_of(metadata: dict[str, Any]) -> str | None:
    """The base of a single file, where it can still be found by its name."""
    from ..students.resolve import find

    with suppress(TiueError):
        return metadata.get("base") and find(metadata["base"]).name
    return None  # looked for as it was then; the hash tells


def _clean(prompt: str) -> str:
    """Undecodable bytes from the terminal become question marks, as no tokenizer takes them."""
    return prompt.encode("utf-8", "replace").decode("utf-8")
