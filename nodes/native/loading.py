"""A student as ComfyUI's own MODEL, CLIP and VAE, from a diffusers folder or a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy import model_management, sdxl_clip
from transformers import CLIPTextConfig, CLIPTokenizer

from ...tiue_core.core.arguments import both_sides
from ...tiue_core.io.files import read_header
from ...tiue_core.students import checkpoint
from ...tiue_core.students.checkpoint import STABLE_DIFFUSION, Made
from ...tiue_core.students.folder import models_of, read_json
from ...tiue_core.students.vocabulary import Vocabulary
from .. import folders
from . import checks, colours, saved, shapes, texts
from .notes import KEY

Weights = dict[str, torch.Tensor]
_AGAIN = "copy the folder again"


def load_folder(
    folder: Path,
    embeddings: Any = None,
    dtype: torch.dtype | None = None,
    unet: Path | None = None,
    name: str = "",
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE from a diffusers folder.

    Args:
        folder: as ``save_pretrained`` writes it.
        embeddings: where ComfyUI looks for textual inversions.
        dtype: of all weights; by default ComfyUI's own choice for this machine.
        unet: a UNet's folder that stands in for the one in `folder`.
        name: of the student, the folder's by default.
    """
    vae_config = _config(folder / "vae")
    name = name or folder.name
    model = _unet(folder, unet or folder / "unet", vae_config, dtype=dtype, name=name)
    entry = {"name": name, **_text_entry(folder)}
    given = [_weights(folder / "text_encoder")]
    if "second" in entry:
        given.append(_weights(folder / "text_encoder_2"))
    clip = texts.load(entry, given, folder / "text_encoder", embeddings, dtype)
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    texts.tell_of_unknown_words(clip.tokenizer, Vocabulary(tokens, folder))
    vae = _vae(folder, vae_config, dtype)
    colours.fit(model, vae)
    return model, clip, vae


@dataclass(frozen=True)
class _Builder:
    """Parts of a student out of one file."""

    path: Path
    embeddings: Any

    def unet(self, entry: dict[str, Any], weights: Weights) -> Any:
        return _model(entry, weights, self.path)

    def clip(self, entry: dict[str, Any], weights: list[Weights]) -> Any:
        return texts.load(entry, weights, self.path, self.embeddings)

    def vae(self, weights: Weights) -> Any:
        tiny = any(key.startswith("taesd_") for key in weights)
        return comfy.sd.VAE(sd=weights, config=None if tiny else saved.vae_config(weights))


def load_checkpoint(
    path: Path, embeddings: Any = None, base: Callable[[str], Any] | None = None
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE from a file of ComfyUI's save nodes, or in Stable Diffusion's format.

    Args:
        base: loads the student of a name, where a file holds only some of its parts.
    """
    read_header(path)
    if folders.of_student(path):
        found = saved.read(path, _Builder(path, embeddings), base or _no_base)
        if found is not None:
            colours.fit(found[0], found[2])
            return found
    try:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(path), embedding_directory=embeddings
        )
    except RuntimeError as error:
        raise ValueError(
            f"{path.name} is no checkpoint that ComfyUI knows "
            f"({str(error).splitlines()[0]}): give a diffusers folder, or another file"
        ) from error
    missing = [name for name, part in (("text encoder", clip), ("UNet", model)) if part is None]
    if missing:
        raise ValueError(
            f"{path.name} has no {' and no '.join(missing)}: give a whole checkpoint, or a "
            "diffusers folder"
        )
    # A file of `tiue export` says how its student was made; others are made as the paper's are.
    made = checkpoint.read_made(path) or Made.stable_diffusion(path.stem)
    if isinstance(clip.cond_stage_model, sdxl_clip.SDXLClipModel):
        if made.blank_zeros is None:  # not a file of ours: as SDXL's own pipeline
            made = replace(made, side=1024, blank_zeros=True)
        if made.blank_zeros:
            texts.blank_is_zeros(clip.cond_stage_model)
    # ComfyUI guesses from a bias whether a 2.x model predicts velocity; a student says.
    velocity = made.scheduler.get("prediction_type") == "v_prediction"
    kinds = comfy.model_base.ModelType
    kind = kinds.V_PREDICTION if velocity else kinds.EPS
    if model.model.model_type != kind:
        model.model.model_type = kind
        model.model.model_sampling = comfy.model_base.model_sampling(model.model.model_config, kind)
    model.set_attachments(KEY, made)
    return model, clip, vae


def _unet(folder: Path, unet: Path, vae_config: dict[str, Any], **more: Any) -> Any:
    entry = {
        "name": more["name"],
        "made": vars(made_by(folder, more["name"])),
        "unet": _config(unet),
        "scale": _latent_scale(vae_config),
    }
    given = _weights(unet)
    names = comfy.utils.unet_to_diffusers(shapes.unet_config(entry["unet"]))
    weights = {ours: given.pop(theirs) for theirs, ours in names.items() if theirs in given}
    return _model(entry, weights, unet, more["dtype"], given)


def _model(
    entry: dict[str, Any], weights: Weights, source: Path, dtype: Any = None, unused: Any = ()
) -> Any:
    """A MODEL from what tensors do not say and from tensors under ComfyUI's own names."""
    made = saved.made_from(entry)
    config = shapes.model_config(
        shapes.unet_config(entry["unet"]),
        {**STABLE_DIFFUSION, **made.scheduler},
        entry["scale"],
        entry["unet"].get("addition_time_embed_dim"),
    )
    config.tiue_entry = saved.packed(entry)
    device = model_management.get_torch_device()
    supported = config.supported_inference_dtypes
    stored = dtype or model_management.unet_dtype(
        model_params=sum(weight.numel() for weight in weights.values()),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(stored, model_management.unet_manual_cast(stored, device, supported))
    offload = model_management.unet_offload_device()
    model = config.get_model(weights, "").to(offload)
    expected = model.diffusion_model.state_dict().keys()
    checks.complete(source, expected - weights.keys(), unused)
    model.load_model_weights(weights, "")

    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    model = patcher(model, load_device=device, offload_device=offload)
    model.set_attachments(KEY, made)
    return model


def _text_entry(folder: Path, which: str = "") -> dict[str, Any]:
    """What the tensors of a folder's text encoder do not say; of SDXL's two, of both."""
    entry = {
        "config": CLIPTextConfig.from_pretrained(folder / f"text_encoder{which}").to_dict(),
        "tokenizer": saved.tokenizer_files(folder / f"tokenizer{which}"),
    }
    if not which and "text_encoder_2" in models_of(folder):
        entry["second"] = _text_entry(folder, "_2")
        entry["blank_zeros"] = read_json(folder / "model_index.json", _AGAIN).get(
            checkpoint.BLANK, True
        )
    return entry


def made_by(folder: Path, name: str) -> Made:
    """The student's own schedule, K and timesteps, as ``TiuePipeline`` saves them."""
    index = read_json(folder / "model_index.json", _AGAIN)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", _AGAIN)
    side = max(both_sides(_config(folder / "unet").get("sample_size") or 64))
    return Made.of_index(name, index, scheduler, 8 * side)


def _no_base(name: str) -> Any:
    raise ValueError(f"this file lacks parts of the student '{name}': give a whole checkpoint")


def _vae(folder: Path, config: dict[str, Any], dtype: torch.dtype | None) -> Any:
    weights = _weights(folder / "vae")
    if config["_class_name"] == "AutoencoderTiny":
        return comfy.sd.VAE(sd=_tiny(weights, config), dtype=dtype)
    return comfy.sd.VAE(sd=weights, config=shapes.vae_params(config), dtype=dtype)


def _tiny(weights: Weights, config: dict[str, Any]) -> Weights:
    """The weights of an ``AutoencoderTiny`` under TAESD's own names."""
    renamed = {}
    for key, value in weights.items():
        part, _, number, rest = key.split(".", 3)
        shift = part == "decoder"  # whose first layer, a clamp, has no weights
        renamed[f"taesd_{part}.{int(number) + shift}.{rest}"] = value
    renamed["vae_scale"] = torch.tensor(_latent_scale(config) / config.get("scaling_factor", 1.0))
    renamed["vae_shift"] = torch.tensor(0.0)
    return renamed


def _latent_scale(vae_config: dict[str, Any]) -> float:
    """What stands between a LATENT and the UNet; a tiny autoencoder adds its own scale to it."""
    if vae_config["_class_name"] == "AutoencoderTiny":
        return 0.18215
    return vae_config.get("scaling_factor", 0.18215)


def _weights(folder: Path) -> Weights:
    """All tensors of one model's folder; the fp16 variant where there is no other."""
    files = sorted(folder.glob("*.safetensors"))
    files = [path for path in files if ".fp16" not in path.name] or files
    tensors: Weights = {}
    for path in files:
        tensors.update(comfy.utils.load_torch_file(str(path), safe_load=True))
    if not tensors:
        raise ValueError(f"{folder} has no .safetensors file: copy the student's folder again")
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", _AGAIN)
