"""Tiny random students in the layouts that are met in the wild, and files that go with them."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small import SD_SCHEDULER

_SCHEDULER = {"_class_name": "DDIMScheduler", **SD_SCHEDULER}


def make_student(
    folder: Path,
    *,
    context: int = 32,
    linear: bool = False,
    fp16: bool = False,
    pipeline: str = "StableDiffusionPipeline",
) -> Path:
    """A diffusers folder as Stable Diffusion 1.5 (`linear=False`) or 2.1 is laid out."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=[2, 4] if linear else 8,
        cross_attention_dim=context,
        use_linear_projection=linear,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
    )
    vocabulary = _vocabulary()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=context,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            hidden_act="gelu" if linear else "quick_gelu",
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
    )
    variant = "fp16" if fp16 else None
    for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        model = model.half() if fp16 else model
        model.save_pretrained(folder / name, variant=variant)
    write_tokenizer(folder / "tokenizer", vocabulary)
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.25.0",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if pipeline == "TiuePipeline":
        for name in ("requires_safety_checker", "safety_checker", "feature_extractor"):
            del index[name]
        del index["image_encoder"]
    write_json(folder / "model_index.json", index)
    return folder


def _vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789,.!")
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    """A CLIP tokenizer in the files of older releases: one token a letter."""
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "special_tokens_map.json", special)
    config = {"model_max_length": 16, "tokenizer_class": "CLIPTokenizer", **special}
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: `length` may lie about the header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def lora_tensors(
    width: int = 32, context: int = 32, rank: int = 2, scale: float = 0.5
) -> dict[str, torch.Tensor]:
    """A LoRA in diffusers' naming, on to_q and to_k of one cross-attention layer."""
    generator = torch.Generator().manual_seed(1)
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    tensors = {}
    for layer, inside in (("to_q", width), ("to_k", context)):
        down = torch.randn(rank, inside, generator=generator)
        up = torch.randn(width, rank, generator=generator)
        tensors[f"{block}.{layer}.lora_A.weight"] = down * scale
        tensors[f"{block}.{layer}.lora_B.weight"] = up * scale
    return tensors


def kohya_lora_tensors(rank: int = 2, **sizes: int) -> dict[str, torch.Tensor]:
    """The same LoRA in kohya's naming, with alpha equal to the rank (a scale of one)."""
    tensors = {}
    for key, tensor in lora_tensors(rank=rank, **sizes).items():
        layer, _, side = key.removesuffix(".weight").rpartition(".")
        name = "lora_" + layer.replace(".", "_")
        tensors[f"{name}.lora_{'down' if side == 'lora_A' else 'up'}.weight"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def write_lora(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def single_file_tensors(student: Path) -> dict[str, torch.Tensor]:
    """A folder of `make_student` in the naming of Stable Diffusion's own checkpoints."""
    parts = {
        "unet": ("model.diffusion_model.", _ldm_unet_name),
        "vae": ("first_stage_model.", _ldm_vae_name),
        "text_encoder": ("cond_stage_model.transformer.text_model.", _ldm_text_name),
    }
    tensors = {}
    for part, (prefix, rename) in parts.items():
        (file,) = (student / part).glob("*.safetensors")
        for key, tensor in load_file(file).items():
            name = rename(key)
            if part == "vae" and re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
                tensor = tensor[:, :, None, None]  # attention is 1x1 convolutions there
            tensors[prefix + name] = tensor
    return tensors


def _ldm_unet_name(key: str) -> str:
    """For two levels of one layer: diffusers' name -> the original name."""
    for ours, theirs in {
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "conv_in.": "input_blocks.0.0.",
        "down_blocks.0.resnets.0.": "input_blocks.1.0.",
        "down_blocks.0.attentions.0.": "input_blocks.1.1.",
        "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
        "down_blocks.1.resnets.0.": "input_blocks.3.0.",
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
        "up_blocks.0.resnets.0.": "output_blocks.0.0.",
        "up_blocks.0.resnets.1.": "output_blocks.1.0.",
        "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.1.conv.",
        "up_blocks.1.resnets.0.": "output_blocks.2.0.",
        "up_blocks.1.attentions.0.": "output_blocks.2.1.",
        "up_blocks.1.resnets.1.": "output_blocks.3.0.",
        "up_blocks.1.attentions.1.": "output_blocks.3.1.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }.items():
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    for ours, theirs in {
        ".norm1.": ".in_layers.0.",
        ".conv1.": ".in_layers.2.",
        ".time_emb_proj.": ".emb_layers.1.",
        ".norm2.": ".out_layers.0.",
        ".conv2.": ".out_layers.3.",
        ".conv_shortcut.": ".skip_connection.",
    }.items():
        if "transformer_blocks" not in key:
            key = key.replace(ours, theirs)
    return key


def _ldm_vae_name(key: str) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", key
    )
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for ours, theirs in {
        "mid_block.attentions.0.": "mid.attn_1.",
        "group_norm.": "norm.",
        "to_q.": "q.",
        "to_k.": "k.",
        "to_v.": "v.",
        "to_out.0.": "proj_out.",
        "conv_shortcut.": "nin_shortcut.",
        "conv_norm_out.": "norm_out.",
    }.items():
        key = key.replace(ours, theirs)
    return key


def _ldm_text_name(key: str) -> str:
    return key.removeprefix("text_model.")


def shard(folder: Path, kind: Any, **options: Any) -> list[Path]:
    """Write one model of a folder again in pieces; returns them."""
    model = kind.from_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, **{"max_shard_size": "100KB", **options})
    return sorted(folder.glob("*-of-*.safetensors"))
