"""Tiny random checkpoints in every system's layout, and the samplers written out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import helpers_students as helpers
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)  # the cumulative product, float64


# --- checkpoints ---------------------------------------------------------------------------


def sd(folder: Path, **changes: Any) -> Path:
    """Stable Diffusion 1's layout; ``changes`` go into the UNet's config."""
    from diffusers import UNet2DConditionModel

    helpers.make_student(folder)
    if changes:
        config = json.loads((folder / "unet" / "config.json").read_text())
        torch.manual_seed(3)
        unet: Any = UNet2DConditionModel.from_config({**config, **changes})
        unet.save_pretrained(folder / "unet")
    return folder


def sdxl(folder: Path, second: int = 32, **changes: Any) -> Path:
    """SDXL's layout: two text encoders, sizes and pooled text as added conditions.

    ``second`` is the width of the second encoder, 32 that of the first; diffusers tells the two of
    one file apart by it.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    helpers.make_student(folder)
    text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    text.num_hidden_layers, text.projection_dim = 2, 32
    torch.manual_seed(4)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    text.hidden_size = text.projection_dim = second
    CLIPTextModelWithProjection(text).save_pretrained(folder / "text_encoder_2")
    (folder / "tokenizer_2").mkdir()
    for file in (folder / "tokenizer").iterdir():
        (folder / "tokenizer_2" / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "unet" / "config.json").read_text())
    wide = {
        "cross_attention_dim": 32 + second,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + second,
    }
    unet: Any = UNet2DConditionModel.from_config({**config, **wide, **changes})
    unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("safety_checker", "requires_safety_checker"):
        del index[name]
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def sdxl_file(folder: Path, path: Path, **more: Tensor) -> Path:
    """A folder of ``sdxl`` as one checkpoint, in the names of SDXL's own code."""
    tensors = {**helpers.single_file_tensors(folder), **more}
    moved = {"cond_stage_model.": "conditioner.embedders.0."}
    moved |= {
        f"model.diffusion_model.add_embedding.linear_{n}": f"model.diffusion_model.label_emb.0.{at}"
        for n, at in ((1, 0), (2, 2))
    }
    for old, new in moved.items():
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    second = load_file(folder / "text_encoder_2" / "model.safetensors")
    tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(second).items()}
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to OpenCLIP's: q, k and v in one, the projection the other way round."""
    inside = "text_model."
    made = {
        "positional_embedding": tensors[f"{inside}embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors[f"{inside}embeddings.token_embedding.weight"],
        "ln_final.weight": tensors[f"{inside}final_layer_norm.weight"],
        "ln_final.bias": tensors[f"{inside}final_layer_norm.bias"],
        "text_projection": tensors["text_projection.weight"].T,
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    parts |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for layer in range(2):
        theirs, ours = f"{inside}encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for old, new in parts.items():
                made[f"{ours}{new}.{kind}"] = tensors[f"{theirs}{old}.{kind}"]
            three = [tensors[f"{theirs}self_attn.{one}_proj.{kind}"] for one in "qkv"]
            made[f"{ours}attn.in_proj_{kind}"] = torch.cat(three)
    return made


def unet_file(folder: Path, path: Path) -> Path:
    """Another random UNet of that folder's shape, as one file of weights."""
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(5)
    unet: Any = UNet2DConditionModel.from_config(config)
    save_file({key: value.contiguous() for key, value in unet.state_dict().items()}, path)
    return path


def unet_folder(folder: Path, path: Path, **changes: Any) -> Path:
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(6)
    unet: Any = UNet2DConditionModel.from_config({**config, **changes})
    unet.save_pretrained(path)
    return path


def lora_file(path: Path) -> Path:
    """A LoRA strong enough to be seen."""
    return helpers.write_lora(path, helpers.kohya_lora_tensors(scale=1.0))


# --- samplers ------------------------------------------------------------------------------
#
# Each is a function of a model (latents float64, t) -> prediction, the first noise and draws of
# more noise, and returns latents. Written from the papers' formulas, with the tables above alone.


def ddim(model: Any, z: Tensor, draw: Any, grid: list[int]) -> Tensor:
    """Song 2021, eta 0; after the last step the schedule's first alpha."""
    for i, t in enumerate(grid):
        eps, a = model(z, t), ALPHAS[t]
        b = ALPHAS[grid[i + 1]] if i + 1 < len(grid) else ALPHAS[0]
        z = math.sqrt(b) * (z - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps
    return z


def lcm(model: Any, z: Tensor, draw: Any, grid: list[int]) -> Tensor:
    """Luo 2023: f = c_skip z + c_out x_0 with sigma_data 0.5 and t scaled by 10, noised again."""
    for i, t in enumerate(grid):
        a, s = ALPHAS[t], 10.0 * t
        x0 = (z - math.sqrt(1 - a) * model(z, t)) / math.sqrt(a)
        z = 0.25 / (s * s + 0.25) * z + s / math.sqrt(s * s + 0.25) * x0
        if i + 1 < len(grid):
            b = ALPHAS[grid[i + 1]]
            z = math.sqrt(b) * z + math.sqrt(1 - b) * draw()
    return z


def tcd(model: Any, z: Tensor, draw: Any, grid: list[int], eta: float) -> Tensor:
    """Zheng 2024: to s = (1 - eta) t' along the trajectory, then noised up to t'."""
    for i, t in enumerate(grid):
        after = grid[i + 1] if i + 1 < len(grid) else 0
        a, b, c = ALPHAS[t], ALPHAS[after], ALPHAS[math.floor((1 - eta) * after)]
        eps = model(z, t)
        x0 = (z - math.sqrt(1 - a) * eps) / math.sqrt(a)
        z = math.sqrt(c) * x0 + math.sqrt(1 - c) * eps
        if i + 1 < len(grid) and eta > 0:
            z = math.sqrt(b / c) * z + math.sqrt(1 - b / c) * draw()
    return z


def euler(
    model: Any, z: Tensor, draw: Any, grid: list[int], ancestral: bool = False, sample: bool = False
) -> Tensor:
    """Karras 2022, in sigmas: starts at the largest, 14.6146, and ends at 0."""
    sigmas = [math.sqrt((1 - ALPHAS[t]) / ALPHAS[t]) for t in grid] + [0.0]
    z = z * sigmas[0]
    if ancestral:  # diffusers starts it from sqrt(sigma^2 + 1) unless spacing is trailing
        assert abs(sigmas[0] - 14.6146) < 1e-3
    for i, t in enumerate(grid):
        now, after = sigmas[i], sigmas[i + 1]
        out = model(z / math.sqrt(now * now + 1), t)
        slope = (z - out) / now if sample else out
        up = after * math.sqrt(max(now * now - after * after, 0)) / now if ancestral else 0.0
        z = z + (math.sqrt(after * after - up * up) - now) * slope
        if ancestral and after:
            z = z + up * draw()
    return z


def guidance_embedding(w: float, width: int = 256) -> Tensor:
    """(1, width): sin and cos of 1000 w at geometric frequencies."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1))
    return torch.cat([torch.sin(1000 * w * rates), torch.cos(1000 * w * rates)])[None]
