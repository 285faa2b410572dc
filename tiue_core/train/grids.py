"""Pictures side by side."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from PIL import Image


def grid(images: torch.Tensor, columns: int) -> Image.Image:
    """(N, 3, H, W) in [-1, 1], N a multiple of ``columns``, as one picture."""
    tiled = rearrange(images.clamp(-1, 1), "(r c) ch h w -> (r h) (c w) ch", c=columns)
    pixels = ((tiled.float().cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(pixels)
