"""``tiue export``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.arguments import DECODERS
from ..errors import TiueError
from ..io.messages import quiet_libraries
from .console import ask_license, emit, one_of, progress
from .options import AcceptLicense, Base, Json, Side, Steps


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    student: Annotated[str, typer.Argument(help="Name, folder, .safetensors file or hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file.")],
    to: Annotated[str, typer.Option(metavar="onnx|openvino|pt2|checkpoint")] = "onnx",
    decoders: Annotated[str, typer.Option(metavar="exact|fast")] = "exact",
    steps: Steps = None,
    width: Side = None,
    height: Side = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Let the graph take other sizes as well.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="float32 or float16: what the graph computes in, or is stored as.")
    ] = "float32",
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="Fused in; may be given many times."),
    ] = None,
    draft: Annotated[bool, typer.Option("--draft", help="Coarser and sooner: TAESD.")] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="Text encoder, encoder, decoder, VAE: a graph each.")
    ] = False,
    base: Base = None,
    accept_license: AcceptLicense = False,
    json: Json = False,
) -> None:
    """Write a student as one graph that runs without PyTorch, in a browser too; or as one
    checkpoint that ComfyUI and the Stable Diffusion WebUI family load themselves.

    Examples: tiue export stickers --to onnx --out stickers.onnx

    tiue export my-student --to checkpoint --dtype float16 --out my-student.safetensors
    """
    started = time.monotonic()
    one_of("--to", to, ("onnx", "openvino", "pt2", "checkpoint"))
    one_of("--decoders", decoders, DECODERS)
    one_of("--dtype", dtype, ("float32", "float16"))
    suffix = {"checkpoint": ".safetensors", "openvino": ".xml"}.get(to, f".{to}")
    if out.suffix != suffix:
        raise typer.BadParameter(f"{out}: let it end in {suffix}", param_hint="--out")
    if to == "checkpoint":
        _only_for_graphs(
            **{"--decoders": decoders != "exact", "--steps": steps, "--width": width},
            **{"--height": height, "--dynamic-size": dynamic_size},
            **{"--draft": draft, "--parts": parts},
        )
    files = make(
        student,
        out,
        dtype=dtype,
        lora=lora or [],
        base=base,
        accept_license=accept_license,
        to=to,
        decoders=decoders,
        steps=steps,
        width=width,
        height=height,
        dynamic_size=dynamic_size,
        parts=parts,
        draft=draft,
    )
    if json:
        emit(
            {
                "files": [{"path": str(file), "bytes": file.stat().st_size} for file in files],
                "student": student,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    else:
        for file in files:
            print(file)


def make(
    student: str,
    out: Path,
    *,
    dtype: str = "float32",
    lora: Sequence[str] = (),
    base: str | None = None,
    accept_license: bool = False,
    **options: Any,
) -> list[Path]:
    """Find and load a student, fuse LoRAs into it, and write its graph; see ``write.export``."""
    from ..students.lora import Lora
    from ..students.resolve import find

    loras = [Lora.parse(text) for text in lora]
    source = find(student, accept_license=ask_license(accept_license), base=base)
    if options.get("to") == "checkpoint":
        return [_checkpoint(source, out, dtype, loras)]
    from ..export import write

    quiet_libraries()
    with progress("exporting", 8 if options.get("parts") else 2) as advance:
        pipe = _load(source, dtype, loras)
        if options.get("draft"):
            pipe.load_draft(accept_license=accept_license)
        record = {
            "student": source.name,
            "student_revision": source.revision,
            "student_hash": source.content_hash(),
            "licence": _license(source),
            "loras": [each.record() for each in loras],
        }
        try:
            return write.export(pipe, out, record=record, advance=advance, **options)
        except ValueError as error:  # the pipeline's are one line each
            raise TiueError(str(error)) from error


def _only_for_graphs(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise typer.BadParameter("a checkpoint has weights only: leave it out", param_hint=name)


def _checkpoint(source: Any, out: Path, dtype: str, loras: list[Any]) -> Path:
    """Every weight as it is in the pipeline, LoRAs fused; how it was made in the header."""
    import torch

    from ..students.checkpoint import Parts, write

    quiet_libraries()
    pipe = _load(source, "float32", loras)
    parts = Parts.of_pipeline(pipe, source.name.rpartition("/")[2])
    return write(parts, out, getattr(torch, dtype))


def _load(source: Any, dtype: str, loras: list[Any]) -> Any:
    from ..pipelines.load import load
    from ..students.lora import load_loras

    pipe = load(source, device="cpu", dtype=dtype)
    if loras:
        load_loras(pipe, loras)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    return pipe


def _license(source: Any) -> str:
    from ..students.registry import REGISTRY

    known = REGISTRY.get(source.name)
    return known.licenses if known else "as the student's own folder says"
