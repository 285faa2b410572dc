"""`tiue generate` where PyTorch paints a student."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from ..io.messages import quiet_libraries
from . import graphs
from .console import progress
from .pictures import BATCH, OTHER_WEIGHTS, Paint, PictureOptions, make


def generate(options: PictureOptions, source: Any, started: float) -> None:
    """Paint pictures of every prompt with the student that was found.

    Raises:
        Failed: see `make`, with what was made until then.
    """
    record: dict[str, Any] = {}

    def prepare() -> tuple[Paint, dict[str, Any]]:
        pipe = _prepared(options, source, record)
        return partial(_paint, pipe, options), record

    about = {"student": {"name": source.name, "revision": source.revision}}
    make(options, prepare, about, started)
    if not (options.loras or options.base or options.draft or options.device or options.dtype):
        graphs.later(options, record)


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
