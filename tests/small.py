"""Small random models in real layouts. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# Stable Diffusion 2.1-base's scheduler config
SD_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
TEXT_WIDTH = 32
TOKENS = 16


def small_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters: a word takes as many tokens as it has letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
    units = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {unit: i for i, unit in enumerate([*units, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS
    )


def small_text_encoder(vocab_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return CLIPTextModel(config).eval()


def small_clip(folder: Path) -> CLIPTokenizer:
    """A CLIP with both sides, saved with its tokenizer, which is returned."""
    letters, small = folder.parent / "letters", {"hidden_size": 32, "intermediate_size": 64}
    letters.mkdir()
    tokenizer = small_tokenizer(letters)
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, **small}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text["eos_token_id"] = len(tokenizer) - 1
    vision = {**size, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def small_unet(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion's topology, four levels, with two narrow widths."""
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def small_vae() -> AutoencoderKL:
    """An autoencoder with Stable Diffusion's factor of 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        norm_num_groups=32,
    ).eval()
