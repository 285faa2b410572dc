"""Draft mode: a random tiny decoder in TAESD's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError


def tiny(folder: Path, **changes: Any) -> AutoencoderTiny:
    torch.manual_seed(1)
    model = AutoencoderTiny(**changes).eval()
    model.save_pretrained(folder)
    return model


def test_a_student_s_own_draft_decoder(pipe: TiuePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "student")
    taesd = tiny(tmp_path / "student" / "taesd")
    loaded = TiuePipeline.from_pretrained(tmp_path / "student")
    images = loaded("a cat", seed=2, draft=True, output_type="pt").images
    latents = pipe("a cat", seed=2, output_type="latent").images
    with torch.no_grad():
        expected = (taesd.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert (images - expected).abs().max() <= 1e-4
    assert images.std() > 0
    whole = loaded("a cat", seed=2, output_type="pt").images
    assert whole.shape == images.shape and (whole - images).abs().max() > 1 / 255


def test_no_draft_decoder(pipe: TiuePipeline, tmp_path: Path) -> None:
    with pytest.raises(TiueError, match="accept its licence"):  # Stable Diffusion's latents
        pipe("a cat", draft=True)
    pipe.vae.register_to_config(scaling_factor=0.3)
    with pytest.raises(TiueError, match="put an AutoencoderTiny into"):
        pipe("a cat", draft=True)
    tiny(tmp_path / "small", num_decoder_blocks=(1, 1), num_encoder_blocks=(1, 1),
         encoder_block_out_channels=(64, 64), decoder_block_out_channels=(64, 64))  # fmt: skip
    with pytest.raises(TiueError, match="4 channels at 1/2 of the size"):
        pipe.load_draft(tmp_path / "small")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TiueError, match="copy the folder again"):
        pipe.load_draft(tmp_path / "empty")
