"""The colours of a student's latents, for the previews that ComfyUI shows while it samples.

*latent2rgb* is a linear map from a latent to the colour of its 8 x 8 pixels. ComfyUI brings that of
Stable Diffusion's autoencoder; a student with an autoencoder of its own would be shown in wrong
colours. Its map is the least-squares fit of flat colours to what its own encoder makes of them,
which shows the student's pictures as well as a fit to those pictures themselves does
(``tests/comfyui/inside/check_previews.py`` prints both).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OF_STABLE_DIFFUSION = 128  # channels of the first layer: ComfyUI's own colours hold
_SIDE = 64  # pixels of a flat picture


def fit(model: Any, vae: Any) -> None:
    """Have a MODEL's ``latent_format`` bear the colours of this VAE, where they are its own.

    The format is shared by all clones of the MODEL, and is not looked at by sampling.
    """
    first = vae.get_sd().get("encoder.conv_in.weight")
    if first is not None and first.shape[0] == _OF_STABLE_DIFFUSION:
        return
    levels = torch.tensor([0.0, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels)  # (27, 3)
    flat = colours[:, None, None].expand(-1, _SIDE, _SIDE, -1)
    with torch.no_grad():
        latents = model.model.process_latent_in(vae.encode(flat).float().cpu())
    factors, bias = solve(latents, 2 * colours[:, :, None, None] - 1)
    if not (factors.isfinite().all() and bias.isfinite().all()):
        return  # an autoencoder that overflows says so when it decodes
    look = model.model.latent_format
    look.latent_rgb_factors, look.latent_rgb_factors_bias = factors.tolist(), bias.tolist()
    look.taesd_decoder_name = None  # a tiny decoder of Stable Diffusion's latents, not of these


def solve(latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (C, 3) and the bias (3,) that give `pixels` from `latents`, by least squares.

    Args:
        latents: (N, C, h, w).
        pixels: (N, 3, h, w) in [-1, 1], or of a shape that expands to it.
    """
    rows = latents.movedim(1, -1).double()
    rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
    wanted = pixels.movedim(1, -1).double().expand(*rows.shape[:-1], 3)
    # gelsd: the smallest of all solutions where the latents do not tell the colours apart
    found = torch.linalg.lstsq(rows.flatten(0, -2), wanted.flatten(0, -2), driver="gelsd").solution
    return found[:-1].float(), found[-1].float()
