"""What a painting in Forge is held against: ``TiuePipeline``'s, same prompt and seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from forge_server import Painting, script, tiue

PROMPT = "a cat on a blue background"
CLOSE = 1e-6  # relative L2 of latents, float32


def on(extension: str, *arguments: Any) -> dict[str, Any]:
    """Settings of a job with an extension switched on."""
    return {"alwayson_scripts": {extension: script(True, *arguments)}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # Forge's settings, the pipeline's
    "plain": ({}, {}),
    "batch": ({"batch_size": 3}, {"count": 3}),
    "guided": (
        {"cfg_scale": 3.0, "negative_prompt": "a dog"},
        {"guidance_scale": 3.0, "negative_prompt": "a dog"},
    ),
    "eight": ({"alwayson_scripts": tiue(8)}, {"steps": 8}),
    "fast": ({"alwayson_scripts": tiue(0, "fast")}, {"decoders": "fast"}),
    "wide": ({"width": 192}, {"width": 192}),
    "odd": ({"width": 136, "height": 104}, {"width": 136, "height": 104}),
}
HANGING: dict[str, dict[str, Any]] = {  # by name: settings of a job
    "nothing": {},
    "FreeU": on("FreeU Integrated (SD 1.x, SD 2.x, SDXL)", 1.3, 1.4, 0.9, 0.2, 0, 1),
    "SAG": on("SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)", 0.5, 2.0, 1.0),
    "PAG": on("PerturbedAttentionGuidance Integrated", 3.0, 0.0, 0.0, 1.0),
    "HRFix": on("Kohya HRFix Integrated", 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"),
    "ToMe": {"override_settings": {"token_merging_ratio": 0.5}},
    "StyleAlign": on("StyleAlign Integrated", 1.0),
    "MultiDiffusion": on("MultiDiffusion Integrated", "MultiDiffusion", 96, 96, 32, 4),
}
WIDE = ("FreeU", "ToMe")  # act on Stable Diffusion's widths and levels alone


def distance(painting: Painting, reference: Any) -> float:
    """Relative L2 of latents."""
    wanted = np.asarray(reference, np.float64)
    return float(np.linalg.norm(painting.latents - wanted) / np.linalg.norm(wanted))


def compare(name: str, painting: Painting, pipe: Any, **settings: Any) -> None:
    """Latents within CLOSE, pictures within 1 of 255: Forge cuts off where diffusers rounds."""
    latents = pipe(PROMPT, seed=3, output_type="latent", **settings).images
    pictures = pipe(PROMPT, seed=3, **settings).images
    last = painting.images[-len(pictures) :]  # of a batch, the first is a grid
    off, pixels = distance(painting, latents), 0
    for ours, theirs in zip(last, pictures, strict=True):
        pixels = max(pixels, int(np.abs(np.int16(ours) - np.int16(theirs)).max()))
    print(f"{name}: latents {off:.1e}, pictures {pixels}")
    assert off <= CLOSE and pixels <= 1
