"""Forge's API: the pictures are ``TiuePipeline``'s, and what hangs on Forge's model counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from forge_server import Painting, Server, tiue

PROMPT = "a cat on a blue background"
CLOSE = 1e-6  # relative L2 of latents, float32


def distance(painting: Painting, reference: Any) -> float:
    wanted = np.asarray(reference, np.float64)
    return float(np.linalg.norm(painting.latents - wanted) / np.linalg.norm(wanted))


def apart(painting: Painting, pictures: list[Any]) -> int:
    """Greatest difference of pixels, of 255."""
    pairs = zip(painting.images[-len(pictures) :], pictures, strict=True)
    return max(int(np.abs(np.int16(ours) - np.int16(theirs)).max()) for ours, theirs in pairs)


CASES = {
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


@pytest.mark.parametrize("case", CASES)
def test_the_pipelines_latents_and_pictures(server: Server, pipe: Any, case: str) -> None:
    theirs, ours = CASES[case]
    painting = server.paint(PROMPT, **theirs)
    latents = pipe(PROMPT, seed=3, output_type="latent", **ours).images
    pictures = pipe(PROMPT, seed=3, **ours).images
    off, pixels = distance(painting, latents), apart(painting, pictures)
    print(f"{case}: latents {off:.1e}, pictures {pixels}")
    assert len(painting.images) >= len(pictures) and off <= CLOSE and pixels <= 1
