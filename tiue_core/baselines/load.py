"""Found files to a system that paints."""

from __future__ import annotations

from typing import Any

from ..errors import TiueError
from ..pipelines.load import device_of, dtype_of
from ..pipelines.load import load as load_student
from ..students.folder import READING
from ..students.lora import Lora, load_loras
from ..students.models import empty, fill, load_components, load_unet, read_tensors
from .find import Found
from .pipeline import SystemPipeline
from .system import Part, System

_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "thresholding": False}
_TRAILING = {"timestep_spacing": "trailing"}
_STEPS_OF_TEACHER = {"original_inference_steps": 50}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {**_DDIM, "timestep_spacing": "leading"}),
    "ddim-trailing": ("DDIMScheduler", {**_DDIM, **_TRAILING}),
    "lcm": ("LCMScheduler", {"clip_sample": False, **_STEPS_OF_TEACHER}),
    "tcd": ("TCDScheduler", {"clip_sample": False, "set_alpha_to_one": False, **_STEPS_OF_TEACHER}),
    "euler": ("EulerDiscreteScheduler", _TRAILING),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", _TRAILING),
    "faster": ("DDIMScheduler", {**_DDIM, "timestep_spacing": "leading"}),
    "flow": ("DDIMScheduler", _DDIM),
    "one-step": ("DDIMScheduler", _DDIM),
}
_NOISE = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas")


def scheduler_of(system: System, config: Any) -> Any:
    """The row's sampler with the weights' own noise schedule.

    Raises:
        TiueError: these weights predict something else, or the timesteps are not the row's.
    """
    import diffusers

    name, options = SCHEDULERS[system.sampler]
    betas = {key: config[key] for key in _NOISE if config.get(key) is not None}
    said = config.get("prediction_type", "epsilon")
    if said != "epsilon":
        raise TiueError(
            f"{system.name} is made for weights that predict epsilon, these predict {said}: "
            "give the files that the registry names"
        )
    prediction = {} if system.sampler == "flow" else {"prediction_type": system.prediction}
    scheduler = getattr(diffusers, name)(**betas, **options, **prediction)
    if system.sampler in ("flow", "one-step"):
        return scheduler
    scheduler.set_timesteps(system.steps)
    found = tuple(scheduler.timesteps.tolist())
    if found != system.timesteps:
        raise TiueError(
            f"{system.name} would run at {list(found)[:4]} instead of "
            f"{list(system.timesteps)[:4]}: give weights of {system.timesteps[0] + 1:.0f} timesteps"
        )
    return scheduler


def load(found: Found, *, device: str | None = None, dtype: Any = None) -> Any:
    """A `SystemPipeline`, or a `TiuePipeline` for a TiUE student.

    Args:
        device: default: a GPU if there is one.
        dtype: a torch dtype or its name; default: float16 on a GPU, float32 on the CPU.

    Raises:
        TiueError: the files are not those of the system, or it is a folder of pictures.
    """
    from ..io.messages import quiet_libraries

    system = found.system
    if system.sampler == "images":
        raise TiueError(f"{found.label} is a folder of pictures: it cannot paint new ones")
    device = device_of(device)
    dtype = dtype_of(dtype, device)
    quiet_libraries()
    if system.sampler == "one-way":
        assert found.source is not None
        pipe = load_student(found.source, device=device, dtype=dtype)
        timesteps = tuple(pipe.schedule(decoders=system.decoders).timesteps.tolist())
        if system.timesteps and timesteps != system.timesteps:
            raise TiueError(
                f"{system.name} is decoded at {list(system.timesteps)}, these files say "
                f"{list(timesteps)}: give the student that the registry names"
            )
        return pipe
    pipe = _pipeline(found, dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler_of(system, pipe.scheduler.config)
    for part, path in zip(system.parts, found.paths, strict=True):
        if part.kind == "lora":
            load_loras(pipe, [Lora(path)])
            pipe.fuse_lora()  # as its authors run it: no extra matrices at every layer
            pipe.unload_lora_weights()
    _check_inputs(system, pipe.unet)
    return SystemPipeline(system, pipe.to(device))


def _pipeline(found: Found, dtype: Any) -> Any:
    """The diffusers pipeline of a system, its UNet from where the row says."""
    import diffusers

    system, folder = found.system, found.paths[0]
    options: dict[str, Any] = dict(READING)
    if found.source is not None and found.source.unet is not None:
        options["unet"] = load_unet(found.source.unet, dtype)
    for part, path in zip(system.parts, found.paths, strict=True):
        if part.kind == "unet":
            options["unet"] = _unet(part, path, folder, dtype)
    kind = diffusers.StableDiffusionPipeline
    if system.xl:
        kind = diffusers.StableDiffusionXLPipeline
        options["add_watermarker"] = False
    else:
        nothing = ("safety_checker", "feature_extractor", "image_encoder")
        options |= {**dict.fromkeys(nothing), "requires_safety_checker": False}
    try:
        second = ("text_encoder_2", "tokenizer_2") if system.xl else ()
        names = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *second)
        options |= load_components(folder, [name for name in names if name not in options], dtype)
        return kind.from_pretrained(str(folder), **options)
    except (ValueError, OSError, RuntimeError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        kind_name = "SDXL" if system.xl else "Stable Diffusion"
        raise TiueError(
            f"{folder} cannot be read as {kind_name} ({why}): give {system.name} the files that "
            "the registry names"
        ) from error


def _unet(part: Part, path: Any, base: Any, dtype: Any) -> Any:
    """A UNet from its own folder, or from one file in the shape that the base's config says."""
    if path.is_dir():
        return load_unet(path, dtype)
    from diffusers import UNet2DConditionModel

    try:
        return fill(empty(UNet2DConditionModel, base / "unet"), read_tensors([path]), path, dtype)
    except TiueError as why:
        raise TiueError(
            f"{path.name} does not fit the UNet of {base.name} ({why}): give the base it was made "
            "for"
        ) from why


def _check_inputs(system: System, unet: Any) -> None:
    """Guidance is an input of these UNets, and of no others; and so are SDXL's sizes."""
    if (unet.config.addition_embed_type is not None) != system.xl:
        wanted = "SDXL" if system.xl else "Stable Diffusion 1 or 2"
        raise TiueError(f"{system.name} runs on {wanted}, this UNet is another's: give its files")
    wants = unet.config.time_cond_proj_dim is not None
    if system.embedded and not wants:
        raise TiueError(
            f"{system.name} gives its UNet the guidance as an input, and this one takes none: "
            "give the consistency model's own UNet"
        )
    if wants and not system.embedded:
        raise TiueError(
            f"this UNet takes the guidance as an input, which {system.name} does not give: "
            "it is a consistency model's, use lcm"
        )
