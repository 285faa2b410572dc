"""`tiue generate` where graphs paint, a file's or those that are kept: no torch is imported."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.arguments import SEEDS
from ..errors import TiueError
from ..export.metadata import RECORD, check_size
from ..export.runtime import Graph
from ..io.files import check_writable
from ..optimize import engines
from ..optimize.cache import make_later
from ..students.vocabulary import notes
from .console import say
from .pictures import OTHER_WEIGHTS, PictureOptions, make


def from_file(graph: Path, options: PictureOptions, started: float) -> None:
    """What ``tiue generate --graph`` does."""
    options.prompts = [" ".join(prompt.split()) for prompt in options.prompts]
    painter = Graph(graph, options.device)
    if options.student_hash not in (None, painter.about.get("student_hash")):
        warnings.warn(OTHER_WEIGHTS, stacklevel=2)
    check_writable(options.out)
    check_size(painter.about, options.width, options.height)
    _paint(painter, options, {"graph": graph.name}, started)


def from_kept(options: PictureOptions, source: Any, started: float) -> bool:
    """Paint with the student's graphs, where some are kept that do what is asked for; else False.

    Raises:
        TiueError: the engine is not installed, or a seed is out of range.
    """
    plain = not (options.loras or options.base or options.optimize or options.guidance != 1)
    plain = plain and options.device in (None, "cpu")
    plain = plain and options.dtype in (None, "float32", "bfloat16")
    if options.engine == "torch" or not plain:
        engines.check(options.engine)
        return False
    wanted = {"steps": options.steps, "decoders": options.decoders, "draft": options.draft}
    total = options.count * len(options.prompts)
    wanted["student_hash"] = source.content_hash()
    graphs = engines.kept(options.engine, options.dtype, total, **wanted)
    if graphs is None:
        return False
    try:
        height, width = check_size(graphs.about, options.width, options.height)
    except TiueError:  # a size that graphs do not take, torch may
        return False
    if options.student_hash not in (None, graphs.about["student_hash"]):
        warnings.warn(OTHER_WEIGHTS, stacklevel=2)
    own, words = (graphs.about["width"], graphs.about["height"]), graphs.tokenizer.get_vocab()
    for note in notes(words, source.path, options.prompts, (width, height), own):
        warnings.warn(note, stacklevel=2)
    named = {"student": source.name, "student_revision": source.revision}
    _paint(graphs, options, named, started)
    return True


def _paint(painter: Graph, options: PictureOptions, facts: dict[str, Any], started: float) -> None:
    """Paint with graphs; ``facts`` are more for the metadata.

    Raises:
        TiueError: a seed that is out of range.
    """
    if not 0 <= options.seed <= SEEDS - options.count:
        most = SEEDS - options.count
        raise TiueError(f"seed is {options.seed}: give a whole number from 0 to {most}")
    about = painter.about
    record = {name: about.get(name) for name in RECORD}
    record |= {"draft": True} if about.get("draft") else {}
    record |= {"dtype": about["dtype"], "device": painter.device, "version": __version__}
    record |= painter.facts() | facts
    student = {"name": record["student"], "revision": record["student_revision"]}

    make(options, lambda: (painter, record), {"student": student}, started)


def later(options: PictureOptions, record: dict[str, Any]) -> None:
    """After a picture that PyTorch painted on a CPU: the next one shall not need it."""
    if options.engine == "auto" and (record["device"], record["dtype"]) == ("cpu", "float32"):
        more = ["--decoders", options.decoders]
        more += [] if options.steps is None else ["--steps", str(options.steps)]
        name = f"{record['student_hash'][:16]}-{options.steps or 'own'}-{options.decoders}"
        if make_later(options.student, name, more):
            say("making graphs in the background, so that the next picture comes at once")
