"""The modules of ``student.py`` with the inputs and the free axes that they are traced with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from .student import (
    Decoder,
    Encoder,
    Student,
    Vae,
    text_encoder,
)


@dataclass
class Traced:
    """One graph to be: a module, its inputs by name, and which of their axes are free."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    axes: dict[str, Any]
    outputs: list[str]


def traced(pipe: Any, schedule: Any, about: dict[str, Any], tokens: int) -> Iterator[Traced]:
    """The graphs to write, each with inputs like those that it will be given.

    Args:
        about: the description (``metadata.py``): sizes, ``whole`` or parts, ``draft``.
        tokens: how many of them the text encoder takes.
    """
    factor, own = about["factor"], about["multiple"] // about["factor"]
    rows = max(2, 63 // len(schedule))  # diffusers asks whether an upsampler's batch is below 64
    batch = {0: Dim("batch", min=1, max=rows)}
    sides = [about["height"] // factor, about["width"] // factor]
    area = dict(batch)
    if about["dynamic_size"]:
        most = about["largest"] // about["multiple"]
        area |= {
            axis: own * Dim(name, min=2, max=most) for axis, name in ((2, "rows"), (3, "columns"))
        }
        sides[1] += own if sides[0] == sides[1] else 0  # or they would be taken for one
    ids = torch.zeros(2, tokens, dtype=torch.int64)
    noise = torch.randn(2, about["channels"], *sides)
    vae = pipe.draft_vae if about["draft"] else pipe.vae
    if about["whole"]:
        yield Traced(
            "student",
            Student(pipe, schedule, vae).eval(),
            {"input_ids": ids, "noise": noise},
            {"input_ids": batch, "noise": area},
            ["image", "latents"],
        )
        return
    encode_text, encode = text_encoder(pipe).eval(), Encoder(pipe, schedule).eval()
    embeds = encode_text(ids)
    mid, *skips = encode(noise, embeds)
    yield Traced(
        "text_encoder", encode_text, {"input_ids": ids}, {"input_ids": batch}, ["prompt_embeds"]
    )
    names = [f"skip_{i}" for i in range(len(skips))]
    yield Traced(
        "encoder",
        encode,
        {"noise": noise, "prompt_embeds": embeds},
        {"noise": area, "prompt_embeds": batch},
        ["mid", *names],
    )

    def free(feature: Tensor) -> Any:
        if not about["dynamic_size"]:
            return batch
        scale = noise.shape[2] // feature.shape[2]
        named = {2: "rows", 3: "columns"}
        most = about["largest"] // about["multiple"]
        ratio = own // scale
        dims = {axis: Dim(name, min=2, max=most) for axis, name in named.items()}
        return {**batch, **{a: ratio * d if ratio > 1 else d for a, d in dims.items()}}

    yield Traced(
        "decoder",
        Decoder(pipe, schedule).eval(),
        {"mid": mid, "skips": skips, "noise": noise, "prompt_embeds": embeds},
        {
            "mid": free(mid),
            "skips": [free(skip) for skip in skips],
            "noise": area,
            "prompt_embeds": batch,
        },
        ["latents"],
    )
    yield Traced("vae", Vae(pipe, vae).eval(), {"latents": noise}, {"latents": area}, ["image"])


def program(graph: Traced) -> Any:
    """torch.export's program. Strict: its tracer keeps `len(tensor)` free, the other fixes it."""
    inputs = tuple(graph.inputs.values())
    return torch.export.export(graph.module, inputs, dynamic_shapes=graph.axes, strict=True)
