"""An order to a picture: the very bytes of `tiue generate`, with a watch on each part.

The three calls are the pipeline's own, one by one, because the page tells how long each takes and
shows what is between them. `tests/page` holds the bytes equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.guidance import guide
from ..core.memory import out_of_memory
from ..core.noise import draw_noise
from ..core.one_pass import one_pass
from ..core.schedule import OneWaySchedule
from ..core.unet import Features
from ..errors import TiueError
from ..io.images import encode_png, slug
from ..io.record import guidance_record, record
from ..shared.measure import Stopwatch
from ..students.vocabulary import size_note
from .state import Order, check_size
from .worker import Models


@dataclass(frozen=True)
class Picture:
    """A painted order."""

    order: Order  # its size filled in
    png: bytes  # what `tiue generate` writes for it
    image: Any  # PIL
    seconds: dict[str, float]  # text, encoder, decoders, VAE
    notes: tuple[str, ...] = ()  # such as words that the text encoder dropped

    @property
    def file(self) -> str:
        """The name that `tiue generate` gives it, but for the number."""
        return f"{slug(self.order.prompt)}_{self.order.seed}.png"


@dataclass(frozen=True)
class Passed:
    """What a pass leaves behind."""

    schedule: OneWaySchedule
    noise: Tensor  # (1, C, h, w)
    features: Features
    predictions: Tensor  # (K, 1, C, h, w), or their weighted sum (1, C, h, w)
    latents: Tensor  # (1, C, h, w)


@torch.no_grad()
def watched_pass(
    pipe: Any,
    order: Order,
    watch: Stopwatch,
    gains: Sequence[float] = (),
    second_prompt: str | None = None,
    keep_predictions: bool = True,
) -> Passed:
    """Encode once, decode K times, combine.

    Args:
        order: with its size.
        gains: factors on E_t of the first decoders; 1 where there is none.
        second_prompt: what the decoders are told, if not what the encoder was.
        keep_predictions: as the core's ``one_pass``; their sum alone takes less time.
    """
    schedule = pipe.schedule(None, order.decoders)
    if any(gain != 1 for gain in gains):
        factors = torch.ones_like(schedule.weights)
        factors[: len(gains)] = torch.tensor(list(gains)[: len(factors)], dtype=factors.dtype)
        schedule = replace(schedule, weights=schedule.weights * factors)
    factor, device = pipe.vae_scale_factor, pipe.device
    assert order.width and order.height
    shape = (pipe.unet.config.in_channels, order.height // factor, order.width // factor)

    guided = order.guidance != 1
    with watch("text"):
        embeds = pipe.encode_prompt([order.prompt]).to(device)
        if guided:
            embeds = torch.cat([pipe.encode_prompt([order.negative]).to(device), embeds])
        told = embeds if second_prompt is None else pipe.encode_prompt([second_prompt]).to(device)
    noise = draw_noise([order.seed], shape).to(device)
    passed = one_pass(
        pipe.split_unet,
        schedule,
        torch.cat([noise, noise]) if guided else noise,
        embeds,
        decoder_embeds=told,
        keep_predictions=keep_predictions and not guided,
        stage=watch,
    )
    latents = guide(passed.latents, order.guidance) if guided else passed.latents
    return Passed(schedule, noise, passed.features, passed.predictions, latents)


@torch.no_grad()
def pictures_of(pipe: Any, latents: Tensor, draft: bool = False) -> list[Any]:
    """z_0 (B, C, h, w) to PIL images, by the student's autoencoder or its draft decoder.

    Raises:
        TiueError: they are no picture (see ``shared.finite``).
    """
    images = pipe._decode_latents(latents, "pt", draft)
    processor = pipe.image_processor
    return processor.numpy_to_pil(processor.pt_to_numpy(images))


def ready(models: Models, order: Order) -> tuple[Any, Order]:
    """The order's studio with its LoRA in place, and the order with its size.

    Raises:
        TiueError: the student cannot be loaded, the LoRA does not fit, or the size does not.
    """
    studio = models.studio(order.student)
    own = (studio.settings.width, studio.settings.height)
    order = check_size(order, own, studio.settings.factor, models.config.limits)
    loras = models.config.lora_of(order)
    with plainly():
        if order.draft and studio.painter.pipe.draft_vae is None:
            studio.painter.pipe.load_draft()
        studio.painter.use(tuple((str(lora.path), lora.strength, digest) for lora, digest in loras))
    return studio, order


def paint(models: Models, order: Order) -> Picture:
    """Paint an order.

    Raises:
        TiueError: what is wrong, in one line.
    """
    studio, order = ready(models, order)
    pipe = studio.painter.pipe
    watch = Stopwatch(pipe.device)
    with noted() as notes, plainly(), pipe._once():
        passed = watched_pass(pipe, order, watch, keep_predictions=False)
        with watch("VAE"):
            image = pictures_of(pipe, passed.latents, order.draft)[0]
    notes += notes_on(studio, order)
    return Picture(order, png_of(models, studio, order, image), image, watch.seconds, tuple(notes))


def notes_on(studio: Any, order: Order) -> list[str]:
    """What the student was not trained on: words of the prompt, the size."""
    vocabulary = studio.painter.pipe.vocabulary
    unknown = vocabulary.unknown([order.prompt, order.negative])
    own = (studio.settings.width, studio.settings.height)
    size = size_note(order.width or own[0], order.height or own[1], own)
    return [vocabulary.note(unknown)] * bool(unknown) + [size] * bool(size)


def png_of(models: Models, studio: Any, order: Order, image: Any) -> bytes:
    source = models.config.students[order.student]
    metadata = record(
        studio.painter.pipe,
        source,
        studio.settings.student_hash,
        decoders=order.decoders,
        draft=order.draft,
        loras=[
            {"name": lora.name, "strength": lora.strength, "hash": digest}
            for lora, digest in models.config.lora_of(order)
        ],
    )
    size = {"width": image.width, "height": image.height}
    metadata |= guidance_record(order.guidance, order.negative)
    return encode_png(image, {**metadata, "prompt": order.prompt, "seed": order.seed, **size})


@contextmanager
def noted() -> Iterator[list[str]]:
    """Warnings for the user, as lines instead of on the server's terminal."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    # This library's own warnings speak to whoever typed the prompt.
    notes += dict.fromkeys(
        str(warning.message)
        for warning in caught
        if warning.category is UserWarning and "prompt" in str(warning.message)
    )


@contextmanager
def plainly() -> Iterator[None]:
    """The pipeline's errors as TiueErrors."""
    try:
        yield
    except ValueError as error:
        raise TiueError(str(error)) from error
    except RuntimeError as error:
        if out_of_memory(error):
            raise TiueError("out of memory: give a smaller width and height") from error
        raise
