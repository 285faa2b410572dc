"""What ComfyUI must be told to build the models of a diffusers folder, whatever their widths.

ComfyUI's own loaders know Stable Diffusion's shapes only. Its model classes know any shape, as
long as channel widths are multiples of 32 (its GroupNorm has 32 groups).
"""

from __future__ import annotations

from typing import Any

from comfy import model_base, supported_models

Config = dict[str, Any]

_GROUPS = 32


class WidthMultiple(float):
    """A channel multiplier such as 2.5, which times a whole width is a whole width."""

    def __mul__(self, width: Any) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def unet_config(config: Config) -> Config:
    """diffusers' ``UNet2DConditionModel`` config as arguments of ComfyUI's ``UNetModel``."""
    widths = list(config["block_out_channels"])
    levels = len(widths)
    _require(all(width % _GROUPS == 0 for width in widths), f"channel widths {widths}")
    _require(config.get("norm_num_groups", 32) == _GROUPS, "GroupNorm without 32 groups")
    _require(config.get("addition_embed_type") is None, "added conditions (SDXL)")
    _require(config.get("class_embed_type") is None, "class embeddings")
    _require(
        config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn",
        "another mid block",
    )
    kinds = {"CrossAttnDownBlock2D": 1, "DownBlock2D": 0, "CrossAttnUpBlock2D": 1, "UpBlock2D": 0}
    downs, ups = config["down_block_types"], config["up_block_types"][::-1]
    _require(all(kind in kinds for kind in (*downs, *ups)), "unknown blocks")

    layers = _per_level(config["layers_per_block"], levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    down_depths = [kinds[kind] * depth for kind, depth in zip(downs, depths, strict=True)]
    up_depths = [kinds[kind] * depth for kind, depth in zip(ups, depths, strict=True)]
    return {
        "image_size": 32,  # of no consequence
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [_multiple(width, widths[0]) for width in widths],
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
        "adm_in_channels": None,
        "legacy": False,
        **_heads(config, widths),
    }


def model_config(unet: Config, scheduler: Config, scaling_factor: float) -> Any:
    """A ComfyUI "supported model" of a student's shape, schedule and latent scale."""
    family = supported_models.SD20 if unet["use_linear_in_transformer"] else supported_models.SD15
    prediction = scheduler.get("prediction_type", "epsilon")
    kinds = {
        "epsilon": model_base.ModelType.EPS,
        "v_prediction": model_base.ModelType.V_PREDICTION,
    }
    _require(prediction in kinds, f"{prediction} prediction")

    heads = {key: unet[key] for key in ("num_heads", "num_head_channels")}
    settings = {
        "beta_schedule": "linear",  # ComfyUI's name for what diffusers calls scaled_linear
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "timesteps": scheduler["num_train_timesteps"],
        "zsnr": scheduler.get("rescale_betas_zero_snr", False),
    }

    class Student(family):  # type: ignore[misc, valid-type]
        unet_extra_config = family.unet_extra_config | heads
        sampling_settings = settings

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            return kinds[prediction]  # SD20 would guess it from a bias, and guess wrong

    _require(scheduler["beta_schedule"] == "scaled_linear", f"betas {scheduler['beta_schedule']}")
    config = Student(unet)
    config.latent_format.scale_factor = scaling_factor
    return config


def vae_params(config: Config) -> Config:
    """diffusers' ``AutoencoderKL`` config as arguments of ComfyUI's ``AutoencoderKL``."""
    widths = list(config["block_out_channels"])
    _require(len(widths) == 4, f"an autoencoder of {len(widths)} levels")
    _require(all(width % _GROUPS == 0 for width in widths), f"autoencoder widths {widths}")
    network = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,  # of no consequence
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [_multiple(width, widths[0]) for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": network, "embed_dim": config["latent_channels"]}}


def _heads(config: Config, widths: list[int]) -> Config:
    """An integer ``attention_head_dim`` is the number of heads; a list, that of every level."""
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    heads = _per_level(heads, len(widths))
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    sizes = {width // count for width, count in zip(widths, heads, strict=True)}
    _require(len(sizes) == 1, f"attention heads {heads}")
    return {"num_heads": -1, "num_head_channels": sizes.pop()}


def _multiple(width: int, first: int) -> int | WidthMultiple:
    return width // first if width % first == 0 else WidthMultiple(width / first)


def _per_level(value: Any, levels: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(
            f"ComfyUI's own models cannot hold a student with {what}: use one of the shape of "
            "Stable Diffusion 1.5 or 2.1"
        )
