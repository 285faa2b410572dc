"""What may be asked of the page: students, LoRAs and limits; an order is checked before it waits.

Visitors choose among what the owner offers. They never name a path or a hub id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..batch.limits import ListLimits
from ..batch.schema import PROMPT_LIMIT
from ..core.arguments import DECODERS, GUIDED, whole_number
from ..errors import TiueError
from ..io.files import tensors_hash
from ..io.record import guidance_record
from ..students.lora import Lora
from ..students.registry import REGISTRY
from ..students.resolve import Source
from .facts import has_draft

SEED_LIMIT = 2**53 - 1  # what a browser counts exactly
MODES = (*DECODERS, "draft")  # draft: fast, and a tiny decoder in the autoencoder's place
STRENGTH_LIMIT = 4.0  # of a LoRA
GUIDANCE_LIMIT = 20.0


@dataclass(frozen=True)
class Limits:
    """How much one server takes on."""

    waiting: int = 64  # pieces of work in all; more are turned away with a message
    each: int = 8  # of one client
    loaded: int = 2  # students in memory at once
    enlarge: int = 2  # times the student's own side, at most
    upload: int = 1 << 20  # bytes of a file
    body: int = 4 << 20  # bytes of any request
    lists: ListLimits = field(default_factory=ListLimits)
    quota: int = 32 << 20  # bytes that one address may upload in an hour
    quota_all: int = 512 << 20  # and all of them
    guesses: int = 10  # wrong passwords of one address in a minute
    variations: int = 8


@dataclass(frozen=True)
class Order:
    """One picture, as `tiue generate` would be asked for it."""

    student: str
    prompt: str
    seed: int = 0
    width: int | None = None  # px; the student's own
    height: int | None = None
    decoders: str = "exact"
    draft: bool = False
    lora: str = ""
    strength: float = 1.0
    negative: str = ""
    guidance: float = 1.0

    def settings(self) -> dict[str, Any]:
        """What brings this picture back, as `ServerConfig.order` takes it and links carry it."""
        decoders = "draft" if self.draft else self.decoders
        settings = {"prompt": self.prompt, "seed": self.seed, "student": self.student}
        settings |= {"width": self.width, "height": self.height, "decoders": decoders}
        lora = {"lora": self.lora, "strength": self.strength} if self.lora else {}
        return {**settings, **lora, **guidance_record(self.guidance, self.negative)}


@dataclass(frozen=True)
class ServerConfig:
    """What the owner offers.

    Args:
        students: by the label shown; the first is the one that the page opens with.
        loras: files by the name shown.
        train: where visitors' LoRAs go; without it nobody trains.
        optimize: call ``TiuePipeline.optimize`` on each student once it is loaded.
        engine: of ``optimize.engines.CHOICES``; graphs are used where a student has some.
    """

    students: dict[str, Source]
    loras: dict[str, Path] = field(default_factory=dict)
    lora_folder: Path | None = None
    train: Path | None = None
    limits: Limits = Limits()
    device: str | None = None
    dtype: str | None = None
    base: str | None = None
    optimize: bool = False
    engine: str = "auto"

    @classmethod
    def of(
        cls, sources: Iterable[Source], loras: Path | None = None, **options: Any
    ) -> ServerConfig:
        """A config of students already found, and of the LoRAs in a folder.

        Raises:
            TiueError: no student, or `loras` is no folder.
        """
        students: dict[str, Source] = {}
        for source in sources:
            label, number = source.name, 2
            while label in students and students[label] != source:
                label, number = f"{source.name} ({number})", number + 1
            students[label] = source
        if not students:
            raise TiueError("there is no student to show: give --student")
        if loras is not None and not loras.is_dir():
            raise TiueError(f"{loras} is no folder of LoRAs: check --loras")
        files = sorted(loras.glob("*.safetensors")) if loras else []
        return cls(students, {path.stem: path for path in files}, loras, **options)

    @property
    def first(self) -> str:
        return next(iter(self.students))

    def license(self, label: str) -> str:
        """The licence of a student, where it is one that we know."""
        source = self.students.get(label)
        known = REGISTRY.get(source.name) if source else None
        if known is None:
            return "its owner's licence holds; this page knows nothing of it"
        return known.licenses

    @property
    def modes(self) -> tuple[str, ...]:
        """`MODES`, without draft where no student has a decoder for it."""
        return MODES if any(map(has_draft, self.students.values())) else DECODERS

    def order(
        self,
        prompt: Any,
        seed: Any = 0,
        *,
        student: Any = None,
        decoders: Any = "exact",
        lora: Any = "",
        **asked: Any,
    ) -> Order:
        """What came from a browser or a client as an order; sizes are held against the student
        when it is loaded, by `check_size`.

        Args:
            asked: width, height, strength (of the LoRA), negative, guidance.

        Raises:
            TiueError: what is wrong, and what to give.
        """
        student = self.first if student in (None, "") else student
        if student not in self.students:
            raise TiueError(f"no student {_short(student)} here: {_listed(self.students)}")
        if lora and lora not in self.loras:
            raise TiueError(
                f"no LoRA {_short(lora)} here: {_listed(self.loras) or 'there is none'}"
            )
        if decoders not in MODES:
            raise TiueError(f"decoders is {_short(decoders)}: give {' or '.join(MODES)}")
        width, height = asked.get("width"), asked.get("height")
        negative = _text("the negative prompt", asked.get("negative") or "")
        guidance = _number("guidance", asked.get("guidance", 1.0), GUIDANCE_LIMIT)
        if negative and guidance == 1:
            guidance = GUIDED
        return Order(
            student=student,
            prompt=_text("the prompt", prompt),
            seed=_whole("seed", seed, 0, SEED_LIMIT),
            width=None if not width else _whole("width", width, 1, 1 << 16),
            height=None if not height else _whole("height", height, 1, 1 << 16),
            decoders="fast" if decoders == "draft" else decoders,
            draft=decoders == "draft",
            lora=lora or "",
            strength=_number("the LoRA's strength", asked.get("strength", 1.0), STRENGTH_LIMIT),
            negative=negative if guidance != 1 else "",
            guidance=guidance,
        )

    def lora_of(self, order: Order) -> tuple[tuple[Lora, str], ...]:
        """The order's LoRA, if it has one, and the file's SHA-256."""
        if not order.lora:
            return ()
        lora = Lora(self.loras[order.lora], order.strength)
        try:
            stat = lora.path.stat()
        except OSError:
            raise TiueError(f"the LoRA {order.lora} is gone: choose another") from None
        return ((lora, _digest(lora.path, stat.st_mtime_ns, stat.st_size)),)


def check_size(order: Order, own: tuple[int, int], factor: int, limits: Limits) -> Order:
    """The order with its size filled in.

    Args:
        own: the student's width and height, in px.
        factor: px per latent.

    Raises:
        TiueError: a side that the student cannot paint, or that this server does not.
    """
    sides: dict[str, Any] = {}
    for name, given, side in zip(
        ("width", "height"), (order.width, order.height), own, strict=True
    ):
        pixels, most = given or side, side * limits.enlarge
        if pixels % factor or not factor <= pixels <= most:
            raise TiueError(f"{name} is {pixels}: give a multiple of {factor} up to {most}")
        sides[name] = pixels
    return replace(order, **sides)


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    return tensors_hash(path)  # once per version of the file, not once per picture


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = whole_number(value)
    if number is None or not low <= number <= high:
        raise TiueError(f"{name} is {_short(value)}: give a whole number from {low} to {high}")
    return number


def _text(name: str, value: Any) -> str:
    """A prompt on one line, with single spaces."""
    if not isinstance(value, str):
        raise TiueError(f"{name} is {_short(value)}: give a text")
    if len(value) > PROMPT_LIMIT:
        raise TiueError(f"{name} has {len(value)} characters: give up to {PROMPT_LIMIT}")
    return " ".join(value.encode("utf-8", "replace").decode().split())


def _number(name: str, value: Any, limit: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or abs(value) > limit:
        raise TiueError(f"{name} is {_short(value)}: give a number from -{limit:g} to {limit:g}")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ("choose " + " or ".join(names[:8])) if names else ""


def offered(names: Sequence[str], accept_license: Any = False) -> list[Source]:
    """Students by name; without names all that are here, the built-in one first."""
    from ..students import resolve as students

    if names:
        return [students.find(name, accept_license=accept_license) for name in names]
    return [students.find(row["name"]) for row in students.overview() if row["here"]]


def restored(config: ServerConfig, metadata: Any) -> Order:
    """The order behind a picture's metadata, a link or an entry of the history.

    Raises:
        TiueError: it does not say how it was made, or this page cannot make it.
    """
    if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
        raise TiueError("this does not say how it was made: use a picture saved by tiue")
    asked = dict(metadata)
    if metadata.get("made_in") == "ComfyUI":
        raise TiueError("this was made in ComfyUI: drop it onto ComfyUI's page")
    if metadata.get("draft"):
        asked["decoders"] = "draft"
    loras = metadata.get("loras")
    if isinstance(loras, list) and loras:
        if len(loras) > 1 or not isinstance(loras[0], dict):
            raise TiueError("this was made with several LoRAs: use tiue generate --like")
        asked |= {"lora": loras[0].get("name", ""), "strength": loras[0].get("strength", 1.0)}
    names = ("seed", "student", "width", "height", "decoders", "lora", "strength")
    known = {n: asked[n] for n in (*names, "negative", "guidance") if asked.get(n) is not None}
    for name in ("strength", "guidance"):  # a link has texts
        if isinstance(known.get(name), str):
            try:
                known[name] = float(known[name])
            except ValueError:
                raise TiueError(f"{name} is {_short(known[name])}: give a number") from None
    return config.order(metadata["prompt"], **known)
