"""What a one-pass student cannot be, and what it cannot be asked for: one line each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.arguments import both_sides, latent_side, whole
from ..core.unet import SplitUNet


def check_unet(unet: Any, added: str | None = None) -> None:
    """Refuse what cannot start from noise and a prompt alone, or wants other conditions."""
    if unet is None:
        return
    config = unet.config
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"this UNet takes {config.in_channels} channels and gives {config.out_channels}: "
            "inpainting and editing models are not students, give a text-to-image one"
        )
    if config.addition_embed_type != added:
        found = config.addition_embed_type or "none"
        raise ValueError(
            f"this UNet wants added conditions ({found}) that do not fit the text encoders: give "
            "SDXL's with SDXL's two, Stable Diffusion 1's and 2's with one"
        )
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ValueError("this UNet wants a class beside the prompt: give a text-to-image one")
    if config.time_cond_proj_dim is not None:
        raise ValueError(
            "this UNet takes the guidance as an input, as a consistency model's does, and a "
            "student is given none: paint with --system lcm"
        )
    SplitUNet(unet)


def check_alike(prompt_embeds: Tensor, against: Tensor) -> None:
    """Guidance is a batch of both, which must be of one shape."""
    (N, D), (n, d) = prompt_embeds.shape[1:], against.shape[1:]
    if (n, d) != (N, D):
        raise ValueError(
            f"prompt_embeds are {N} tokens of width {D}, the negative prompt's {n} of {d}: give "
            "as many, or guidance_scale=1"
        )


def latent_shape(
    pipe: Any, width: int | None, height: int | None, latents: Tensor | None, total: int
) -> tuple[int, int, int]:
    """(C, h, w) of the latents: as the given ones, as asked in pixels, or the student's own.

    Raises:
        ValueError: the noise given or the size asked for does not fit.
    """
    channels, factor = pipe.unet.config.in_channels, pipe.vae_scale_factor
    sides = both_sides(pipe.unet.config.sample_size)
    if latents is not None:
        if latents.ndim != 4 or latents.shape[:2] != (total, channels):
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}: give noise of shape "
                f"({total}, {channels}, height / {factor}, width / {factor})"
            )
        sides = latents.shape[2], latents.shape[3]
    shape = [channels]
    for name, given, side in zip(("height", "width"), (height, width), sides, strict=True):
        pixels = side * factor if given is None else whole(name, given, 1)
        shape.append(latent_side(name, pixels, factor))
        if latents is not None and pixels != side * factor:
            raise ValueError(f"{name} is {pixels} but the latents make {side * factor}")
    return shape[0], shape[1], shape[2]
