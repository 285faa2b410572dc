"""Scenes as tensors of pixels."""

from __future__ import annotations

import numpy as np
import torch

from .world import Scene, World


def render_pool(world: World, count: int, seed: int) -> torch.Tensor:
    """``count`` scenes as uint8 (N, 3, H, W)."""
    return render(world.scenes(count, seed))


def render(scenes: list[Scene]) -> torch.Tensor:
    """Scenes as uint8 (N, 3, H, W)."""
    pixels = np.stack([np.asarray(scene.render()) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [0, 255] to float [-1, 1]."""
    return pixels.float() / 127.5 - 1
