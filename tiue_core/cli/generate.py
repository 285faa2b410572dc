"""`tiue generate`: prompts, or a picture made earlier, to pictures.

Like every module of commands it imports nothing heavy before a command runs.
"""

import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TiueError, out_of_memory
from ..io.messages import quiet_libraries
from .config import configured
from .console import Failed, ask_license, emit, progress, say
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

OTHER_WEIGHTS = "that picture was made with other weights, so it may differ"
_BATCH = 4  # pictures per pass: saved, and counted by the bar, batch by batch


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


@dataclass
class RunOptions:
    """What was asked for: on the command line, or by an image made earlier."""

    prompts: list[str]
    student: str = "stickers"
    seed: int = 0
    count: int = 1
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    decoders: str = "exact"
    draft: bool = False
    optimize: bool = False
    negative: str = ""
    guidance: float = 1.0
    out: Path = Path("out")
    device: str | None = None
    dtype: str | None = None
    engine: str = "auto"
    base: str | None = None
    accept_license: bool = False
    loras: list[Any] = field(default_factory=list)
    student_hash: str | None = None


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
    first_seed = _seed(seed)
    settings: dict[str, Any] = {"student": student, "steps": steps, "decoders": decoders}
    settings |= {"lora": lora or None, "base": base, "negative": negative, "guidance": guidance}
    sides: dict[str, Any] = {"seed": first_seed, "width": width, "height": height, "dtype": dtype}
    if origin is not None:  # a picture says how it was made: no configuration changes that
        for values in (settings, sides):
            values |= {name: None for name in values if configured(context, name)}
    if graph is not None:
        _refuse({**settings, "dtype": sides.pop("dtype")}, "fixed in a graph", "`tiue export`")
        from .export import paint

        where: dict[str, Any] = {"out": out, "origin": origin, "device": device, "json": json}
        return paint(graph, texts, count=count, **sides, **where)
    if origin is not None and system is None and settings["student"] is None:
        system = _system_of(origin)
    if system is not None:
        switches = {"draft": draft or None, "optimize": optimize or None}
        _refuse({**settings, **switches}, "for students", "a student")
        where = {"out": out, "device": device, "accept_license": accept_license, "as_json": json}
        return _with_system(system, origin, texts, sides, {"count": count, **where})
    # Whatever can be wrong is looked at before torch is imported, which takes seconds.
    from ..core.arguments import DECODERS, GUIDED
    from ..io.files import check_writable
    from ..students.lora import Lora

    if decoders not in (None, *DECODERS):
        raise typer.BadParameter(
            f"{decoders}: give {' or '.join(DECODERS)}", param_hint="--decoders"
        )
    options = RunOptions(texts, count=count, out=out, device=device, base=settings.pop("base"))
    options.loras = [Lora.parse(text) for text in settings.pop("lora") or []]
    options.draft, options.optimize = draft, optimize
    options.accept_license, options.engine = accept_license, engine
    if origin is not None:
        _remember(options, origin)
    for name, value in {**settings, **sides}.items():
        if value is not None:
            setattr(options, name, value)
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
    graphs = _graphs(options, source)
    if graphs is not None:
        from .export import paint_with

        named = {"student": source.name, "student_revision": source.revision}
        size = (options.width, options.height)
        return paint_with(graphs, options.prompts, options.seed, count, size, out, json, named)
    from ..io.messages import need_torch

    need_torch()
    images: list[dict[str, Any]] = []
    error, status = _paint(options, source, images)
    result = {
        "images": images,
        "student": {"name": source.name, "revision": source.revision},
        "seconds": round(time.monotonic() - started, 3),
    }
    if error is not None:
        raise Failed(str(error), result, status) from error
    if not (options.loras or options.base or options.draft or device or options.dtype):
        _graphs_later(options, images[0])
    if json:
        emit(result)
    else:
        for image in images:
            print(image["path"])


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


def _graphs(options: RunOptions, source: Any) -> Any:
    """The student's graphs, where there are some for this order: no torch is imported then."""
    from ..optimize import engines

    plain = not (options.loras or options.base or options.optimize or options.guidance != 1)
    plain = plain and options.device in (None, "cpu")
    plain = plain and options.dtype in (None, "float32", "bfloat16")
    if options.engine == "torch" or not plain:
        engines.check(options.engine)
        return None
    from ..export.metadata import check_size

    wanted = {"steps": options.steps, "decoders": options.decoders, "draft": options.draft}
    wanted["student_hash"] = source.content_hash()
    total = options.count * len(options.prompts)
    graphs = engines.kept(options.engine, options.dtype, total, **wanted)
    if graphs is None:
        return None
    with suppress(TiueError):  # a size that graphs do not take, torch may
        check_size(graphs.about, options.width, options.height)
        if options.student_hash not in (None, graphs.about["student_hash"]):
            warnings.warn(OTHER_WEIGHTS, stacklevel=2)
        from ..students.vocabulary import notes

        own = (graphs.about["width"], graphs.about["height"])
        size = (options.width or own[0], options.height or own[1])
        for note in notes(graphs.vocabulary(), source.path, options.prompts, size, own):
            warnings.warn(note, stacklevel=2)
        return graphs
    return None


def _graphs_later(options: RunOptions, image: dict[str, Any]) -> None:
    """After a picture that PyTorch painted on a CPU: the next one shall not need it."""
    from ..io.images import read_metadata
    from ..optimize.cache import make_later

    record = read_metadata(Path(image["path"]))
    if options.engine == "auto" and (record["device"], record["dtype"]) == ("cpu", "float32"):
        more = ["--decoders", options.decoders]
        more += [] if options.steps is None else ["--steps", str(options.steps)]
        name = f"{record['student_hash'][:16]}-{options.steps or 'own'}-{options.decoders}"
        if make_later(options.student, name, more):
            say("making graphs in the background, so that the next picture comes at once")


def _system_of(origin: Path) -> str | None:
    """The system that a picture was made with, if it was none of ours."""
    from ..io.images import read_metadata

    return read_metadata(origin).get("system")


def _with_system(
    system: str,
    origin: Path | None,
    prompts: list[str],
    settings: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """`--system`, with what the picture of `--like` says where nothing else is said."""
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
    options: RunOptions, source: Any, images: list[dict[str, Any]]
) -> tuple[Exception | None, int]:
    """Paint and save batch by batch into ``images``; return what stopped it, and the status."""
    from concurrent.futures import ThreadPoolExecutor

    from ..io.record import guidance_record
    from ..io.record import record as record_of

    total = options.count * len(options.prompts)
    try:
        with ThreadPoolExecutor(1) as pool, progress("loading", None):
            digest = pool.submit(source.content_hash)  # reads the weights while they are loaded
            pipe = _load(options, source)
            record = record_of(
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
            _optimize(pipe, options, min(_BATCH, total))
        elif options.engine not in ("auto", "torch"):
            named = {name: record[name] for name in ("student", "student_hash")}
            with progress("making a graph, once", None):
                fresh = not options.loras
                pipe.use_graphs(options.engine, record={**named, "loras": []} if fresh else None)
        record |= pipe.facts
        seeds = range(options.seed, options.seed + options.count)
        jobs = [(prompt, seed) for prompt in options.prompts for seed in seeds]
        with progress("painting", len(jobs)) as advance:
            for start in range(0, len(jobs), _BATCH):
                part = jobs[start : start + _BATCH]
                for image in _paint_batch(pipe, options, part, record):
                    images.append(image)
                    advance(1)
    except KeyboardInterrupt:
        there = f", in {options.out}" if images else ""
        return TiueError(f"stopped: {len(images)} of {total} made{there}"), 130
    except (TiueError, ValueError) as error:  # the pipeline's ValueErrors are one line each
        return error, 1
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return TiueError("out of memory: ask for a smaller --width and --height"), 1
    return None, 0


def _load(options: RunOptions, source: Any) -> Any:
    from ..pipelines.load import load
    from ..students.lora import load_loras

    quiet_libraries()
    pipe = load(source, device=options.device, dtype=options.dtype)
    pipe.set_progress_bar_config(disable=True)
    load_loras(pipe, options.loras)
    if options.draft:
        pipe.load_draft(accept_license=options.accept_license)
    return pipe


def _optimize(pipe: Any, options: RunOptions, batch_size: int) -> None:
    with progress("optimizing", 4) as advance:
        pipe.optimize(
            options.engine,
            width=options.width,
            height=options.height,
            batch_size=batch_size,
            progress=lambda done, *_: advance(int(done > 0)),
        )


def _paint_batch(
    pipe: Any, options: RunOptions, jobs: list[tuple[str, int]], record: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    from ..io.images import save_image

    output = pipe(
        [prompt for prompt, _ in jobs],
        seed=[seed for _, seed in jobs],
        width=options.width,
        height=options.height,
        steps=options.steps,
        decoders=options.decoders,
        draft=options.draft,
        guidance_scale=options.guidance,
        negative_prompt=options.negative or None,
    )
    for image, (prompt, seed) in zip(output.images, jobs, strict=True):
        size = {"width": image.width, "height": image.height}
        path = save_image(image, options.out, {**record, "prompt": prompt, "seed": seed, **size})
        yield {"path": str(path), "prompt": prompt, "seed": seed, **size}


def _remember(options: RunOptions, origin: Path) -> None:
    """Fill `options` from the metadata of a picture, whose LoRA files must have been given."""
    from dataclasses import replace

    from ..io.images import read_metadata

    metadata = read_metadata(origin)
    if metadata.get("made_in") == "ComfyUI":
        raise TiueError(f"{origin} was made in ComfyUI: drop it onto ComfyUI's page")
    options.prompts = options.prompts or [metadata["prompt"]]
    settings = ("seed", "width", "height", "steps", "decoders", "draft", "dtype")
    against = ("negative", "guidance")
    for name in ("student", "student_hash", *settings, *against):
        if metadata.get(name) is not None:
            setattr(options, name, metadata[name])
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
