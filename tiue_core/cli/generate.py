"""`tiue generate`: prompts, or a picture made earlier, to pictures.

Like every module of commands it imports nothing heavy before a command runs.
"""

import secrets
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TiueError
from ..io.files import check_writable
from ..io.messages import need_torch
from .config import configured
from .console import ask_license, one_of, say
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
from .origin import Origin
from .pictures import PictureOptions


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
    options = PictureOptions(texts, count=count, out=out, device=device, json=json)
    options.accept_license, options.engine = accept_license, engine
    given: dict[str, Any] = {"seed": _seed(seed), "width": width, "height": height, "dtype": dtype}
    settings: dict[str, Any] = {"student": student, "steps": steps, "decoders": decoders}
    settings |= {"lora": lora or None, "base": base, "negative": negative, "guidance": guidance}
    like = None
    if origin is not None:  # a picture says how it was made: no configuration changes that
        for values in (settings, given):
            values |= {name: None for name in values if configured(context, name)}
        like = Origin.read(origin)
        options.take(like.settings())
        options.prompts = texts or options.prompts
    if graph is not None:
        _refuse({**settings, "dtype": given.pop("dtype")}, "fixed in a graph", "`tiue export`")
        from . import graphs

        options.take(given)
        return graphs.from_file(graph, options, started)
    if system is None and settings["student"] is None and like is not None:
        system = like.system
    switches = {"draft": draft or None, "optimize": optimize or None}
    if system is not None:
        _refuse({**settings, **switches}, "for students", "a student")
        from . import systems

        options.take(given)
        return systems.generate(system, options, started)
    # Whatever can be wrong is looked at before torch is imported, which takes seconds.
    from ..core.arguments import DECODERS, GUIDED
    from ..students.lora import Lora

    if decoders is not None:
        one_of("--decoders", decoders, DECODERS)
    options.loras = [Lora.parse(text) for text in settings.pop("lora") or []]
    options.take(settings | given | switches)
    if like is not None:
        options.loras = like.loras(options.loras)
        options.base = options.base or like.base()
    if negative and guidance is None and options.guidance == 1:
        options.guidance = GUIDED
    if options.negative and options.guidance == 1:
        warnings.warn("--negative does nothing at --guidance 1: give more, such as 2", stacklevel=2)
    from ..students.resolve import find

    try:
        licensed = ask_license(accept_license)
        source = find(options.student, accept_license=licensed, base=options.base)
    except TiueError as missing:
        if like is None or student is not None:
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
    from . import student as studio

    studio.generate(options, source, started)


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


def _clean(prompt: str) -> str:
    """Undecodable bytes from the terminal become question marks, as no tokenizer takes them."""
    return prompt.encode("utf-8", "replace").decode("utf-8")
