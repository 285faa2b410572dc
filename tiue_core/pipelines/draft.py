"""Draft mode: a tiny decoder (TAESD) in the autoencoder's place, for a twentieth of its work.

A tiny decoder belongs to one latent space. A student may bring its own, an ``AutoencoderTiny`` in
the folder ``taesd`` beside its ``vae``; for Stable Diffusion 1 and 2 there is a public one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..students import hub
from ..students.models import load_model

FOLDER, FILE = "taesd", "config.json"
HUB_ID = "madebyollin/taesd"
SCALING = 0.18215  # of Stable Diffusion 1 and 2's latents, which is what it was made for


def load_draft_decoder(pipe: Any, source: str | Path | None = None, accept: bool = False) -> Any:
    """An ``AutoencoderTiny`` for the latents of a pipeline, on its device and in its dtype.

    Args:
        source: a folder or a hub id; by default the student's own, else the public one if the
            student paints in Stable Diffusion's latent space.
        accept: download the public one if it is not here (MIT licence, 10 MB).

    Raises:
        TiueError: there is none for this student, or it does not fit.
    """
    from diffusers import AutoencoderTiny

    home = Path(str(pipe.name_or_path or ""))
    own = home / FOLDER  # of a folder that it was read from, and not of wherever one stands
    scaling = float(pipe.vae.config.scaling_factor)
    if source is None and pipe.name_or_path and own.is_dir():
        source = own
    if source is None and not math.isclose(scaling, SCALING, rel_tol=1e-3):
        raise TiueError(
            f"no draft decoder for this student's latents: put an AutoencoderTiny into {own}"
        )
    public = source is None
    source = source or HUB_ID
    here = not public and Path(source).is_dir()
    if not here and not accept and hub.cached(str(source), None, FILE) is None:
        raise TiueError(
            f"the draft decoder {source} is not here: accept its licence, MIT, to download it "
            "(accept_license, --accept-license)"
        )
    folder = hub.model_of(HUB_ID, accept) if public else hub.folder_of(source, accept)
    tiny = load_model(AutoencoderTiny, folder)
    channels, factor = tiny.config.latent_channels, 2 ** (len(tiny.config.num_decoder_blocks) - 1)
    if channels != pipe.vae.config.latent_channels or factor != pipe.vae_scale_factor:
        raise TiueError(
            f"the draft decoder {source} takes {channels} channels at 1/{factor} of the size, this "
            f"student paints {pipe.vae.config.latent_channels} at 1/{pipe.vae_scale_factor}"
        )
    return tiny.to(pipe.vae.device, pipe.vae.dtype).eval()
