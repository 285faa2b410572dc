"""Names of tensors in a checkpoint of Stable Diffusion's original code, from diffusers' names.

    UNet          model.diffusion_model.input_blocks, middle_block, output_blocks, out, time_embed
    autoencoder   first_stage_model.encoder, decoder
    text encoder  cond_stage_model.transformer (CLIP-L), cond_stage_model.model (OpenCLIP-H, fused)
    SDXL's two    conditioner.embedders.0.transformer (CLIP-L), .1.model (OpenCLIP-bigG, fused)

The numbers of the original lists count every layer of all levels; diffusers' count per level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import TiueError

Config = Mapping[str, Any]
Tensors = dict[str, Any]

OPEN_CLIP = 1024  # width of the text encoder of Stable Diffusion 2, whose file has OpenCLIP's names

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's pooled text and sizes
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {  # diffusers' names, and those it had before
    **{"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet_tensors(tensors: Tensors, config: Config) -> Tensors:
    """A ``UNet2DConditionModel``'s tensors under the original names, without prefix."""
    layers = _per_level(config["layers_per_block"], len(config["block_out_channels"]))
    down_starts = [1 + sum(n + 1 for n in layers[:level]) for level in range(len(layers))]
    ups = layers[::-1]
    up_starts = [sum(n + 1 for n in ups[:level]) for level in range(len(ups))]
    attends = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]

    def block(match: re.Match) -> str:
        way, level, kind, number = match[1], int(match[2]), match[3], int(match[4])
        if kind == "downsamplers":
            return f"input_blocks.{down_starts[level] + layers[level]}.0.op"
        if kind == "upsamplers":
            after = 2 if attends[level] else 1
            return f"output_blocks.{up_starts[level] + ups[level]}.{after}.conv"
        blocks, starts = ("input", down_starts) if way == "down" else ("output", up_starts)
        return f"{blocks}_blocks.{starts[level] + number}.{int(kind == 'attentions')}"

    def name(key: str) -> str:
        key = _renamed(key, _UNET_ENDS)
        if ".resnets." in key:
            head, _, tail = key.partition(".resnets.")
            number, _, tail = tail.partition(".")
            key = f"{head}.resnets.{number}.{_renamed(tail, _RESNET)}"
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)", key)
        if middle:
            place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
            return f"middle_block.{place}{key[middle.end() :]}"
        return re.sub(
            r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\.conv)?"
            r"(?=\.)",
            lambda match: block(match) + (match[5] or "") * (match[3] in ("resnets", "attentions")),
            key,
        )

    return {name(key): tensor for key, tensor in tensors.items()}


def unet_layers(unet: Any) -> dict[str, str]:
    """The layers of a ``UNet2DConditionModel`` that have a weight: original name to diffusers'."""
    names = [name.removesuffix(".base_layer") for name, module in unet.named_modules() if name]
    renamed = unet_tensors({f"{name}.weight": name for name in names}, unet.config)
    return {ours.removesuffix(".weight"): theirs for ours, theirs in renamed.items()}


def vae_tensors(tensors: Tensors, config: Config) -> Tensors:
    """An ``AutoencoderKL``'s tensors under the original names; attention as 1x1 convolutions."""
    last = len(config["block_out_channels"]) - 1

    def name(key: str) -> str:
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key
        )
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        found = re.match(r"(.*)mid_block\.attentions\.0\.(.*)", key)
        if found:
            key = f"{found[1]}mid.attn_1.{_renamed(found[2], _VAE_ATTENTION)}"
        return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")

    def shaped(key: str, tensor: Any) -> Any:
        linear = ".attn_1." in key and key.endswith("weight") and tensor.ndim == 2
        return tensor[:, :, None, None] if linear else tensor

    renamed = {name(key): tensor for key, tensor in tensors.items()}
    return {key: shaped(key, tensor) for key, tensor in renamed.items()}


def text_tensors(tensors: Tensors, config: Config) -> Tensors:
    """A ``CLIPTextModel``'s tensors under the original names, with ``cond_stage_model.`` off."""
    if config["hidden_size"] != OPEN_CLIP:
        return first_text_tensors(tensors, config)
    return {f"model.{key}": tensor for key, tensor in _open_clip(_plain(tensors)).items()}


def first_text_tensors(tensors: Tensors, config: Config) -> Tensors:
    """The same of CLIP-L; of SDXL's first, too, with ``conditioner.embedders.0.`` off."""
    return {f"transformer.text_model.{key}": value for key, value in _plain(tensors).items()}


def second_text_tensors(tensors: Tensors, config: Config) -> Tensors:
    """SDXL's second, with ``conditioner.embedders.1.`` off; its projection lies the other way."""
    plain = _plain(tensors)
    projection = plain.pop("text_projection.weight").T
    return {
        f"model.{key}": tensor
        for key, tensor in {**_open_clip(plain), "text_projection": projection}.items()
    }


def _plain(tensors: Tensors) -> Tensors:
    return {
        key.removeprefix("text_model."): tensor
        for key, tensor in tensors.items()
        if not key.endswith("position_ids")
    }


def _open_clip(tensors: Tensors) -> Tensors:
    import torch

    made: Tensors = {}
    parts: dict[str, Any] = {}
    for key, tensor in tensors.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)", key)
        if layer is None:
            made[_CLIP_ENDS.get(key, key)] = tensor
            continue
        home, rest = f"transformer.resblocks.{layer[1]}", layer[2]
        fused = re.match(r"self_attn\.([qkv])_proj\.(weight|bias)", rest)
        if fused:
            parts.setdefault(f"{home}.attn.in_proj_{fused[2]}", {})[fused[1]] = tensor
        else:
            made[f"{home}.{_renamed(rest, _CLIP_LAYER)}"] = tensor
    for key, three in parts.items():
        made[key] = torch.cat([three[letter] for letter in "qkv"])
    return made


def check(configs: Mapping[str, Config]) -> None:
    """Raise TiueError if the original layout has no names for models of these configs."""
    unet, vae = configs["unet"], configs["vae"]
    known = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    odd = sorted({*unet["down_block_types"], *unet["up_block_types"]} - known)
    added = "text_time" if "text_encoder_2" in configs else None
    if unet.get("addition_embed_type") != added:
        odd.append("added conditions unlike SDXL's")
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        odd.append(f"the middle block {unet['mid_block_type']}")
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        odd.append(f"the autoencoder {vae['_class_name']}")
    if odd:
        raise TiueError(
            f"a student with {', '.join(odd)} has no place in Stable Diffusion's original layout: "
            "convert one of the shape of Stable Diffusion 1.5, 2.1 or SDXL"
        )


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """`key` with its first part exchanged, where that is in `names`."""
    for old, new in names.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def _per_level(value: Any, levels: int) -> list[int]:
    return list(value) if isinstance(value, Iterable) else [value] * levels
