"""Latents on their way into and out of the autoencoder, against its own formulas."""

from __future__ import annotations

from typing import Any

import torch

SCALE, SHIFT = 0.7, 0.3


def test_a_picture_is_decoded_with_the_scale_and_the_shift(pipe: Any) -> None:
    """As diffusers' pipelines of shifted latents do: z / scale + shift."""
    pipe.vae.register_to_config(scaling_factor=SCALE, shift_factor=SHIFT)
    z = pipe("a cat", seed=0, output_type="latent").images
    with torch.no_grad():
        wanted = (pipe.vae.decode(z / SCALE + SHIFT).sample / 2 + 0.5).clamp(0, 1)
    assert (pipe("a cat", seed=0, output_type="pt").images - wanted).abs().max() <= 1e-6


def test_an_autoencoder_that_overflows_in_half_precision_leaves_it(pipe: Any) -> None:
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.half()
    image = pipe("a cat", seed=0, output_type="pt").images
    assert pipe.vae.dtype == torch.float32 and image.dtype == torch.float32
    pipe.vae.register_to_config(force_upcast=False)
    pipe.vae.half()
    assert pipe("a cat", seed=0, output_type="pt").images.dtype == torch.float16
    assert pipe.vae.dtype == torch.float16


def test_pictures_in_0_to_1_are_diffusers_own_to_the_last_bit() -> None:
    """By one thread: torch's others would spin on while an engine paints the next picture."""
    from diffusers.image_processor import VaeImageProcessor

    from tiue_core.pipelines.vae import unit

    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        random = torch.Generator().manual_seed(0)
        images = (3 * torch.randn(2, 3, 128, 128, generator=random)).to(dtype)
        made, wanted = unit(images), VaeImageProcessor().postprocess(images, output_type="pt")
        assert made.dtype == dtype and torch.equal(made, wanted)


def test_pictures_come_back_from_their_latents_as_they_were_scaled(pipe: Any) -> None:
    from tiue_core.pipelines.vae import decode, encode_mean

    pipe.vae.register_to_config(scaling_factor=SCALE, shift_factor=SHIFT)
    pipe.vae.double()  # in float32 a random decoder makes much of the last bit, on some processors
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 32, generator=random).double() * 2 - 1
    with torch.no_grad():
        z = encode_mean(pipe.vae, images)
        own = pipe.vae.encode(images).latent_dist.mean
        assert (z - (own - SHIFT) * SCALE).abs().max() <= 1e-12
        assert (decode(pipe.vae, z) - pipe.vae.decode(own).sample).abs().max() <= 1e-9
