"""Small models with random weights, in the layouts that people have on their disks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "an", "the", "on", "in", "with", "and", "cat", "dog", "apple", "car", "star", "red", "green", "blue", "yellow", "background"]
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def student(folder: Path, seed: int = 0, **unet: Any) -> Path:
    """A diffusers folder of the built-in miniature's shape; ``unet`` overrides its UNet's config."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    width = unet.get("cross_attention_dim", 128)
    parts = {
        "unet": UNet2DConditionModel(**{**UNET, **unet}),
        "vae": AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            sample_size=128,
            scaling_factor=0.6,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
                vocab_size=len(_vocabulary()),
                bos_token_id=len(_vocabulary()) - 2,
                eos_token_id=len(_vocabulary()) - 1,
                pad_token_id=len(_vocabulary()) - 1,
            )
        ),
        "scheduler": DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if k[0] != "_"}),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    _tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 160),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}


def _vocabulary() -> list[str]:
    letters = [chr(code) for code in range(33, 127)]
    return [*letters, *(letter + "</w>" for letter in letters), *_merged()[1]] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]


def _merged() -> tuple[list[str], list[str]]:
    """Merges that build WORDS letter by letter, and the tokens they make."""
    merges: list[str] = []
    tokens: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        grown = pieces[0]
        for piece in pieces[1:]:
            if f"{grown} {piece}" not in merges:
                merges.append(f"{grown} {piece}")
                tokens.append(grown + piece)
            grown += piece
    return merges, list(dict.fromkeys(tokens))


def _tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(_vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_merged()[0], ""]))
    special = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}
    special |= {"unk": special["eos"], "pad": special["eos"]}
    config = {f"{kind}_token": token for kind, token in special.items()}
    config |= {"model_max_length": 32, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = {f"{kind}_token": token for kind, token in special.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))


if __name__ == "__main__":
    import sys

    student(Path(sys.argv[1]))
