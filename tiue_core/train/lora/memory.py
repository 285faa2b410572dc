"""What a run will need, known before it starts: its own updates, run on tensors without data.

Every storage that such an update makes is counted while it lives, so the figure has no formula
that could forget an attention or a checkpoint.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..diffusion import Noising
from ..pairs import Pairs
from ..recipe import LoraRecipe
from .kohya import lora_parameters
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


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.bytes -= size


def give_back() -> None:
    """Let glibc return large freed blocks to the system; elsewhere nothing happens.

    By itself it raises the size from which it does (M_MMAP_THRESHOLD) up to 32 MB, and the holes
    that leaves made a third of what an update at Stable Diffusion's shape held.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)


def estimate(recipe: LoraRecipe, pipeline: Any, sides: list[tuple[int, int]]) -> Estimate:
    """The most memory that any update of ``recipe`` needs, with all models there.

    Args:
        pipeline: the student's; only configs and sizes are read.
        sides: width and height of the pictures' buckets, in pixels.
    """
    unet = pipeline.unet
    dtype = unet.dtype
    others = sum(_bytes(model) for model in (pipeline.vae, pipeline.text_encoder))
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
    length = pipeline.tokenizer.model_max_length
    width = pipeline.text_encoder.config.hidden_size
    size, factor = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    shape = (config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size)))
    schedule, batch = pipeline.schedule(), recipe.batch_size
    with torch.device("meta"), _default(dtype):
        student, teacher = kind.from_config(config), kind.from_config(config)
    for unet in (student, teacher):
        unet.requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        embeds = torch.zeros(batch, length, width)
        latents = torch.zeros(batch, *shape)
        w, h = max(sides, key=lambda side: side[0] * side[1])
        parts = Parts(
            pipeline=SimpleNamespace(unet=student),
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
        stage.update(0, None)
    fakes = 0 if first or recipe.method == "paired" else learned
    return live.peak + 2 * (learned + fakes)  # the optimizer's moments


def _stage(recipe: LoraRecipe, parts: Parts, first: bool) -> Stage:
    bare = recipe.model_copy(update={"init": None})
    stage: Any = TransferStage(bare, parts) if first else StudentStage(bare, parts, recipe.out)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    stage.accelerator = SimpleNamespace(
        autocast=lambda: torch.autocast("cpu", precision) if precision else nullcontext(),
        backward=lambda loss: loss.backward(),
    )
    stage._check = lambda name, loss: None
    stage._descend = lambda optimizer, name, loss: loss.backward()
    stage._rows = lambda total, generator: torch.arange(recipe.batch_size)
    stage._group = lambda generator: parts.groups[0]
    if not first:
        from ...unet import SplitUNet

        stage.split = SplitUNet(stage.unet)
        noise = torch.zeros(recipe.batch_size, *parts.shape)
        stage.pairs = Pairs(torch.arange(recipe.batch_size), noise, noise)
    return stage


def _make_fake(model: Any) -> None:
    """Tensors without data, but on the CPU, where attention goes the way it will go."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            like = torch.empty(parameter.shape, dtype=parameter.dtype)
            module._parameters[name] = torch.nn.Parameter(like, parameter.requires_grad)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _bytes(model: Any) -> int:
    return 0 if model is None else sum(_size(p) for p in model.parameters())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _free() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
