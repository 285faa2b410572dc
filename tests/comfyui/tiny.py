"""Small models with random weights, in the layouts that people have on their disks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WORDS = "a an the on in with and cat dog apple star red green blue background".split()  # noqa: SIM905
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


def student(folder: Path, seed: int = 0, tiny_vae: bool = False, **unet: Any) -> Path:
    """A diffusers folder of the built-in miniature's shape; ``unet`` changes its UNet's config."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    width = unet.get("cross_attention_dim", 128)
    parts = {
        "unet": UNet2DConditionModel(**{**UNET, **unet}),
        "vae": AutoencoderTiny(scaling_factor=0.9)
        if tiny_vae
        else AutoencoderKL(
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
        "vae": ["diffusers", type(parts["vae"]).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def sdxl(folder: Path, layers: int = 3, projection: int = 96, **unet: Any) -> Path:
    """The same in SDXL's layout: text encoders of 64 and 96, sizes in 32 numbers each."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    added = {
        "cross_attention_dim": 160,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + projection,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": [3, 3, 4],
    }
    student(folder, **{**added, **unet})
    for name, kind, width in (
        ("text_encoder", CLIPTextModel, 64),
        ("text_encoder_2", CLIPTextModelWithProjection, 96),
    ):
        config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
        config.hidden_size, config.num_hidden_layers = width, layers
        config.projection_dim = projection
        config.hidden_act = "gelu" if width == 96 else "quick_gelu"
        kind(config).save_pretrained(folder / name)
    second = folder / "tokenizer_2"
    second.mkdir()
    for file in (folder / "tokenizer").iterdir():  # the second fills up with "!", which is 0
        text = file.read_text()
        second.joinpath(file.name).write_text(re.sub(r'("pad_token": )"[^"]*"', r'\1"!"', text))
    index = json.loads((folder / "model_index.json").read_text()) | {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (96, 96, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}


def _vocabulary() -> list[str]:
    letters = [chr(code) for code in range(33, 127)]
    ends = [letter + "</w>" for letter in letters]
    return [*letters, *ends, *_merged()[1], "<|startoftext|>", "<|endoftext|>"]


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


def lora(file: Path, unet: Any, text_encoder: Any, rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA file in kohya's naming, and the change it makes to every weight at strength 1."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    tensors, changes = {}, {}
    for prefix, model in (("lora_unet", unet), ("lora_te", text_encoder)):
        for name, module in model.named_modules():
            if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or "attn" not in name:
                continue
            kohya = (
                name if prefix == "lora_unet" else f"text_model.{name.removeprefix('text_model.')}"
            )
            rows, columns = module.weight.shape[:2]
            down, up = torch.randn(rank, columns) / columns**0.5, torch.randn(rows, rank) / 4
            key = f"{prefix}_{kohya.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(float(rank) / 2)
            changes[f"{prefix}:{name}"] = up @ down / 2
    save_file(tensors, file)
    return changes


@contextmanager
def merged(pipe: Any, file: Path, strength: float) -> Iterator[None]:
    """A pipeline with a file of ``lora`` merged into its weights."""
    from safetensors.torch import load_file

    tensors, kept = load_file(file), []
    for prefix, model in (("lora_unet", pipe.unet), ("lora_te", pipe.text_encoder)):
        for name, module in model.named_modules():
            path = (
                name if prefix == "lora_unet" else f"text_model.{name.removeprefix('text_model.')}"
            )
            key = f"{prefix}_{path.replace('.', '_')}"
            if f"{key}.alpha" in tensors:
                up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
                change = up @ down * (tensors[f"{key}.alpha"] / len(down)) * strength
                kept.append((module.weight, module.weight.detach().clone()))
                module.weight.data += change.view(module.weight.shape)
    try:
        yield
    finally:
        for weight, value in kept:
            weight.data.copy_(value)


def controlnet(file: Path, unet: dict[str, Any], seed: int = 2) -> Any:
    """A ControlNet for a UNet config, in diffusers; and a file of it in ControlNet's own naming.

    ComfyUI's loader wants whole multiples of the first width, and takes heads to be 64 wide.
    """
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    widths, layers = list(unet["block_out_channels"]), unet["layers_per_block"]
    model = ControlNetModel(
        in_channels=4,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=unet["down_block_types"],
        cross_attention_dim=unet["cross_attention_dim"],
        attention_head_dim=[width // 64 for width in widths],
        use_linear_projection=unet.get("use_linear_projection", False),
        conditioning_embedding_out_channels=(16, 32, 96, 256),
    )
    _awake(model)
    save_controlnet(file, model)
    return model


def control_lora(file: Path, unet: Any, seed: int = 2) -> Any:
    """A ControlNet of a diffusers UNet's own shape, and a file of it as a Control-LoRA.

    ComfyUI builds that kind from the MODEL, so it may have any shape.
    """
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
    _awake(model)
    save_controlnet(file, model, lora=True)
    return model


def _awake(controlnet: Any) -> None:
    """Fill the layers that are zero before training, without which it does nothing."""
    for module in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.1)
    torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.1)


def save_controlnet(file: Path, model: Any, lora: bool = False) -> None:
    """A diffusers ControlNet in ControlNet's own naming; as a Control-LoRA, of any shape."""
    from safetensors.torch import save_file

    widths, layers = model.config.block_out_channels, model.config.layers_per_block
    names = [
        (re.compile(f"^{theirs}"), ours) for theirs, ours in _controlnet_names(layers, len(widths))
    ]
    tensors = {"lora_controlnet": torch.tensor([])} if lora else {}
    for key, value in model.state_dict().items():
        for pattern, ours in names:
            key = pattern.sub(ours, key)
        tensors[key] = value.contiguous()
    save_file(tensors, file)


def _controlnet_names(layers: int, levels: int) -> list[tuple[str, str]]:
    """Rewrites of key prefixes, diffusers to ControlNet's own, applied in turn."""
    rules = [
        (r"time_embedding\.linear_1", "time_embed.0"),
        (r"time_embedding\.linear_2", "time_embed.2"),
        (r"conv_in\.", "input_blocks.0.0."),
        (r"controlnet_mid_block", "middle_block_out.0"),
        (r"controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0"),
        (r"controlnet_cond_embedding\.conv_in", "input_hint_block.0"),
        (r"controlnet_cond_embedding\.conv_out", "input_hint_block.14"),
        (r"mid_block\.resnets\.0", "middle_block.0"),
        (r"mid_block\.attentions\.0", "middle_block.1"),
        (r"mid_block\.resnets\.1", "middle_block.2"),
    ]
    for i in range(6):
        old = rf"controlnet_cond_embedding\.blocks\.{i}\."
        rules.append((old, f"input_hint_block.{2 * (i + 1)}."))
    for level in range(levels):
        first = 1 + level * (layers + 1)
        block = rf"down_blocks\.{level}\."
        for i in range(layers):
            rules.append((rf"{block}resnets\.{i}\.", f"input_blocks.{first + i}.0."))
            rules.append((rf"{block}attentions\.{i}\.", f"input_blocks.{first + i}.1."))
        rules.append((rf"{block}downsamplers\.0\.conv", f"input_blocks.{first + layers}.0.op"))
    parts = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    inside = r"((?:input_blocks\.\d+|middle_block)\.\d+\.)"
    return rules + [(rf"{inside}{old}\.", rf"\1{new}.") for old, new in parts.items()]
