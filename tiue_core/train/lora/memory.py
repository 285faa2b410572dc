"""What a run will need, known before it starts: its own updates, run on tensors without data.

Every storage that such an update makes is counted while it lives, so the figure has no formula
that could forget an attention or a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ...core.arguments import both_sides
from ...core.forward_process import Noising
from ...core.packed import extra_rows, take_packed
from ..pairs import Pairs
from ..recipe import LoraRecipe
from ..rehearsal import Alone, Live, default_dtype
from .adapters import lora_parameters
from .parts import Group, Parts, Prior
from .stages import Stage, StudentStage, TransferStage

PROCESS = 650_000_000  #: Python, torch, diffusers and transformers, before there is a model


@dataclass(frozen=True)
class Estimate:
    """Bytes: the models' weights, what one update adds to them, all with the process itself."""

    weights: int
    update: int
    total: int

    @property
    def gigabytes(self) -> float:
        return self.total / 1e9


def estimate(recipe: LoraRecipe, pipeline: Any, sides: list[tuple[int, int]]) -> Estimate:
    """The most memory that any update of ``recipe`` needs, with all models there.

    Args:
        pipeline: the student's; only configs and sizes are read.
        sides: width and height of the pictures' buckets, in pixels.
    """
    unet = pipeline.unet
    dtype = unet.dtype
    second = getattr(pipeline, "text_encoder_2", None)
    others = sum(_bytes(model) for model in (pipeline.vae, pipeline.text_encoder, second))
    one = sum(p.numel() for p in unet.parameters()) * dtype.itemsize
    ways: list[bool] = [True] + [False] * (recipe.method != "transfer")
    peak = max(_peak(recipe, pipeline, sides, dtype, first) for first in ways)
    base = PROCESS if unet.device.type == "cpu" else 0
    weights = others + 2 * one
    return Estimate(weights, peak - 2 * one, base + others + peak)


def report(found: Estimate, say: Callable[[str], None]) -> None:
    """One line on what is needed, and one of warning where that is more than there is."""
    free = _free()
    say(f"memory: about {found.gigabytes:.1f} GB, of {free / 1e9:.1f} GB free")
    if found.total > free:
        say(
            "warning: that is more than is free: --gradient-checkpointing, --precision bf16 and a "
            "smaller --batch-size take less"
        )


def _peak(
    recipe: LoraRecipe,
    pipeline: Any,
    sides: list[tuple[int, int]],
    dtype: torch.dtype,
    first: bool,
) -> int:
    config, kind = dict(pipeline.unet.config), type(pipeline.unet)
    length = pipeline.tokenizer.model_max_length + extra_rows(pipeline.unet)
    width = pipeline.unet.config.cross_attention_dim
    shape = (config["in_channels"], *both_sides(config["sample_size"]))
    schedule, batch, factor = pipeline.schedule(), recipe.batch_size, pipeline.vae_scale_factor
    with torch.device("meta"), default_dtype(dtype):
        student, teacher = kind.from_config(config), kind.from_config(config)
    for unet in (student, teacher):
        unet.requires_grad_(False)
    take_packed(teacher, factor)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        embeds = torch.zeros(batch, length, width)
        latents = torch.zeros(batch, *shape)
        w, h = max(sides, key=lambda side: side[0] * side[1])
        parts = Parts(
            pipeline=SimpleNamespace(unet=student, vae_scale_factor=factor),
            teacher=teacher,
            schedule=schedule,
            noising=Noising(torch.zeros(1000)),
            groups=[Group(torch.zeros(batch, shape[0], h // factor, w // factor), embeds)],
            captions=[""] * batch,
            embeds=embeds,
            empty=embeds[:1],
            prior=Prior(embeds, latents, latents) if recipe.prior else None,
            shape=shape,
        )
    stage: Any = _stage(recipe, parts, first)
    learned = sum(_size(p) for p in lora_parameters(stage.unet).values())
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        for unet in (student, teacher):
            _make_fake(unet)
        stage.update(0, torch.Generator())
    fakes = 0 if first or recipe.method == "paired" else learned
    return live.peak + 2 * (learned + fakes)  # the optimizer's moments


def _stage(recipe: LoraRecipe, parts: Parts, first: bool) -> Stage:
    bare = recipe.model_copy(update={"init": None})
    stage: Any = TransferStage(bare, parts) if first else StudentStage(bare, parts, recipe.out)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    stage.accelerator = Alone(
        lambda: torch.autocast("cpu", precision) if precision else nullcontext()
    )
    if not first:
        stage.split = parts.halves
        noise = torch.zeros(recipe.batch_size, *parts.shape)
        stage.pairs = Pairs(torch.arange(recipe.batch_size), noise, noise)
    return stage


def _make_fake(model: Any) -> None:
    """Tensors without data, but on the CPU, where attention goes the way it will go."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            like = torch.empty(parameter.shape, dtype=parameter.dtype)
            module._parameters[name] = torch.nn.Parameter(like, parameter.requires_grad)


def _bytes(model: Any) -> int:
    return 0 if model is None else sum(_size(p) for p in model.parameters())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _free() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
