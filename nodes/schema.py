"""What all nodes of the pack share: their menu, their sockets, their common inputs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

MENU = "TiUE"
Features = io.Custom("TIUE_FEATURES")
Predictions = io.Custom("TIUE_PREDICTIONS")
Ticket = io.Custom("TIUE_JOB")

_KNOWN = {field.name for field in fields(io.Schema)}


def schema(search_aliases: list[str], **given: Any) -> io.Schema:
    """A node's schema; ComfyUI learnt of search aliases after 0.3."""
    if "search_aliases" in _KNOWN:
        given["search_aliases"] = search_aliases
    return io.Schema(category=MENU, **given)


def from_noise(positive: str) -> list[io.Input]:
    """What a run from noise asks for; `positive` is the tooltip of its prompt."""
    return [
        model_input(),
        io.Conditioning.Input("positive", tooltip=positive),
        latent_input(),
        seed_input(),
        decoders_input(),
    ]


def model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="A one-pass student: the MODEL of Load Student.")


def latent_input() -> io.Latent.Input:
    return io.Latent.Input(
        "latent",
        tooltip="Size and number of pictures: an Empty Latent Image. A student paints from pure "
        "noise, so a latent that holds a picture is refused.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**64 - 1,
        control_after_generate=True,
        tooltip="The first picture of a batch is drawn from this seed alone, the second from "
        "seed + 1, and so on: any of them comes out the same on its own.",
    )


def decoders_input() -> io.Int.Input:
    return io.Int.Input(
        "decoders",
        default=0,
        min=0,
        max=50,
        tooltip="How many timesteps are decoded in parallel (K of the paper). "
        "0: as many as the student was trained for, usually 4.",
    )


def chunk_input() -> io.Int.Input:
    return io.Int.Input(
        "chunk",
        default=0,
        min=0,
        max=50,
        optional=True,
        tooltip="Decoders that run at once. 0: all, fewer where memory is short. "
        "Less takes less memory and gives the same picture.",
    )


def latent_output() -> io.Latent.Output:
    return io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")
