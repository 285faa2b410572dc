"""A UNet's config in the words of the latent-diffusion code, which ComfyUI and Forge share.

Their own loaders know Stable Diffusion's shapes only. Their model classes know any shape, as long
as channel widths are multiples of 32 (their GroupNorm has 32 groups).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

_GROUPS = 32


class WidthMultiple(float):
    """A channel multiplier such as 2.5, which times a whole width is a whole width."""

    def __mul__(self, width: Any) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def unet_config(config: Mapping[str, Any]) -> Config:
    """diffusers' ``UNet2DConditionModel`` config as arguments of the hosts' UNet classes.

    Raises:
        ValueError: they cannot hold such a UNet; the message says why.
    """
    widths = list(config["block_out_channels"])
    levels = len(widths)
    check_widths(widths, "channel")
    require(config.get("norm_num_groups", 32) == _GROUPS, "GroupNorm without 32 groups")
    added = config.get("addition_embed_type")
    require(added in (None, "text_time"), f"added conditions ({added})")
    require(config.get("flip_sin_to_cos", True), "sines before cosines in its time embedding")
    require(config.get("freq_shift", 0) == 0, "another time embedding")
    require(config.get("class_embed_type") is None, "class embeddings")
    require(
        config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn",
        "another mid block",
    )
    kinds = {"CrossAttnDownBlock2D": 1, "DownBlock2D": 0, "CrossAttnUpBlock2D": 1, "UpBlock2D": 0}
    downs, ups = config["down_block_types"], config["up_block_types"][::-1]
    require(all(kind in kinds for kind in (*downs, *ups)), "unknown blocks")

    layers = _per_level(config["layers_per_block"], levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    down_depths = [kinds[kind] * depth for kind, depth in zip(downs, depths, strict=True)]
    up_depths = [kinds[kind] * depth for kind, depth in zip(ups, depths, strict=True)]
    return {
        "image_size": 32,  # of no consequence
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [multiple(width, widths[0]) for width in widths],
        "num_res_blocks": layers,
        "transformer_depth": [
            d for d, n in zip(down_depths, layers, strict=True) for _ in range(n)
        ],
        "transformer_depth_output": [
            d for d, n in zip(up_depths, layers, strict=True) for _ in range(n + 1)
        ],
        "transformer_depth_middle": depths[-1],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        # SDXL's pooled text and sizes, as one vector
        "adm_in_channels": config["projection_class_embeddings_input_dim"] if added else None,
        **({"num_classes": "sequential"} if added else {}),
        "legacy": False,
        **_heads(config, widths),
    }


def multiple(width: int, first: int) -> int | WidthMultiple:
    """What times `first` is `width`: whole where it can be."""
    return width // first if width % first == 0 else WidthMultiple(width / first)


def check_widths(widths: list[int], whose: str) -> None:
    """Raise ValueError where a GroupNorm of 32 groups does not fit."""
    require(all(width % _GROUPS == 0 for width in widths), f"{whose} widths {widths}")


def require(holds: bool, what: str) -> None:
    """Raise ValueError, naming `what`, unless it holds."""
    if not holds:
        raise ValueError(
            f"ComfyUI's and Forge's own models cannot hold a student with {what}: use one of the "
            "shape of Stable Diffusion 1.5 or 2.1"
        )


def _heads(config: Mapping[str, Any], widths: list[int]) -> Config:
    """An integer ``attention_head_dim`` is the number of heads; a list, that of every level."""
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = _per_level(heads, len(widths))
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    sizes = {width // count for width, count in zip(widths, heads, strict=True)}
    require(len(sizes) == 1, f"attention heads {heads}")
    return {"num_heads": -1, "num_head_channels": sizes.pop()}


def _per_level(value: Any, levels: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels
