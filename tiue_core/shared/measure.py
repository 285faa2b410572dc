"""Which savings pay here? Fewer operations are not always less time: where features are small,
more launches may eat the gain. So each part is run both ways on its own inputs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.unet import Features
from .decoder import Decoder
from .parts import PlainResnet, PlainTransformer, PlainUpsampler

Times = dict[str, tuple[float, float]]


def now(device: torch.device) -> float:
    """A clock in seconds, read once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """``with watch(part): ...``: seconds by part, as often as it is entered."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = now(self.device)
        yield
        self.seconds[part] += now(self.device) - began


def clock(function: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Seconds of the fastest of ``repeats`` runs, after one to warm up."""
    best = float("inf")
    for i in range(repeats + 1):
        started = now(device)
        function()
        best = best if i == 0 else min(best, now(device) - started)
    return best


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """FLOP/s of a product of two square matrices: what the machine can do here and now."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / clock(lambda: a @ b, device, 5)


def times(
    decoder: Decoder, features: Features, temb: Tensor, context: Tensor, repeats: int = 3
) -> Times:
    """Seconds of every part as it is and as diffusers runs it.

    Args:
        decoder: with the savings in question.
        features: of B images.
        temb: (K, D) or (B, K, D), the time embeddings.
        context: (B, N, D), the prompts.
        repeats: runs of each, of which the fastest counts.
    """
    h, skips, device = features.mid, list(features.skips), features.mid.device
    found: Times = {}

    def both(name: str, thrifty: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
        found[name] = (clock(thrifty, device, repeats), clock(plain, device, repeats))
        return thrifty()

    levels: Any = decoder.levels
    for level in levels:
        for i, resnet in enumerate(level.resnets):
            skip, row, raw = skips.pop(), resnet.project(temb), PlainResnet(resnet.resnet)
            h = both(
                resnet.name, partial(resnet.whole, h, skip, row), partial(raw.whole, h, skip, temb)
            )
            if level.transformers:
                part = level.transformers[i]
                plain = PlainTransformer(part.transformer)
                h = both(part.name, partial(part, h, context), partial(plain, h, context))
        for part in level.upsamplers:
            double, size = PlainUpsampler(part.upsample), skips[-1].shape[2:]
            h = both(part.name, partial(part, h, size), partial(double, h, size))
    return found


def not_worth_it(found: Times) -> set[str]:
    """The parts that are slower with their saving."""
    return {name for name, (thrifty, plain) in found.items() if thrifty > plain}
