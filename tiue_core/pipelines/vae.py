"""Latents as the UNet knows them, z, and as the autoencoder does.

z = (latents - shift) * scale       scale: ``scaling_factor``, shift: ``shift_factor`` or 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """The autoencoder's latents as the UNet's."""
    return (latents - _shift(vae)) * vae.config.scaling_factor


def unscaled(vae: Any, z: Tensor) -> Tensor:
    """The UNet's latents as the autoencoder's."""
    return z / vae.config.scaling_factor + _shift(vae)


def encode_mean(vae: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to the mean z (B, C, h, w)."""
    return scaled(vae, vae.encode(images.to(vae.dtype)).latent_dist.mean)


def decode(vae: Any, z: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
    """z (B, C, h, w) to images (B, 3, H, W) in [-1, 1].

    An autoencoder that overflows in half precision (``force_upcast``, SDXL's) leaves it for good.

    Args:
        run: calls ``vae.decode`` in place of the plain call.
    """
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)
    latents = unscaled(vae, z).to(vae.dtype)
    return (run or _decode)(vae, latents)


def unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] in [0, 1]. On a CPU by one thread: waking torch's others, which then spin,
    takes what paints next longer than the pixels do."""
    if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.float64):
        return (images * 0.5 + 0.5).clamp(0, 1)
    pixels = images.detach().numpy() * 0.5  # Python's numbers leave the dtype as it is
    return torch.from_numpy((pixels + 0.5).clip(0, 1))


def _decode(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents, return_dict=False)[0]


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
