"""What ComfyUI must be told to build the models of a diffusers folder, whatever their widths."""

from __future__ import annotations

from typing import Any

from comfy import model_base, supported_models

from ...tiue_core.students.ldm_config import Config, check_widths, multiple, require, unet_config

__all__ = ["model_config", "unet_config", "vae_params"]


def model_config(
    unet: Config, scheduler: Config, scaling_factor: float, sizes: int | None = None
) -> Any:
    """A ComfyUI "supported model" of a student's shape, schedule and latent scale.

    Args:
        sizes: in how many numbers an SDXL UNet hears each of the picture's sizes.
    """
    family: Any = supported_models.SDXL if unet["adm_in_channels"] else supported_models.SD15
    if family is supported_models.SD15 and unet["use_linear_in_transformer"]:
        family = supported_models.SD20
    prediction = scheduler.get("prediction_type", "epsilon")
    kinds = {
        "epsilon": model_base.ModelType.EPS,
        "v_prediction": model_base.ModelType.V_PREDICTION,
    }
    require(prediction in kinds, f"{prediction} prediction")

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

        def get_model(self, *args: Any, **options: Any) -> Any:
            model = super().get_model(*args, **options)
            if sizes:  # SDXL's own embeds each of them in 256 numbers
                model.embedder = type(model.embedder)(sizes)
            return model

        def process_unet_state_dict_for_saving(self, state_dict: Any) -> Any:
            saved = super().process_unet_state_dict_for_saving(state_dict)
            return {**saved, "tiue.student": self.tiue_entry}  # what tensors do not say

    if (
        family is supported_models.SD20 and unet["context_dim"] != 1024
    ):  # not OpenCLIP's encoder: no names of OpenCLIP's for it
        Student.process_clip_state_dict = supported_models.SD15.process_clip_state_dict
        own = supported_models.SD15.process_clip_state_dict_for_saving
        Student.process_clip_state_dict_for_saving = own
    require(scheduler["beta_schedule"] == "scaled_linear", f"betas {scheduler['beta_schedule']}")
    config = Student(unet)
    config.latent_format.scale_factor = scaling_factor
    return config


def vae_params(config: Config) -> Config:
    """diffusers' ``AutoencoderKL`` config as arguments of ComfyUI's ``AutoencoderKL``."""
    widths = list(config["block_out_channels"])
    require(len(widths) == 4, f"an autoencoder of {len(widths)} levels")
    check_widths(widths, "autoencoder")
    network = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,  # of no consequence
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [multiple(width, widths[0]) for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": network, "embed_dim": config["latent_channels"]}}
