"""A student as one ``.safetensors`` checkpoint, which ComfyUI and the WebUI family load themselves.

Such a file has weights only: no schedule, no K. They travel in the header's metadata under the key
``tiue``; programs that know nothing of it see an ordinary checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..core.arguments import both_sides
from ..core.schedule import STEPS, OneWaySchedule
from ..errors import TiueError
from ..io.files import (
    check_writable,
    explain,
    read_header,
    safetensors_metadata,
    sort_metadata,
    to_disk,
)
from . import original
from .folder import MODELS, check_folder, models_of, read_json, weights

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "clip_sample": False,
}
"""The scheduler that Stable Diffusion 1 and 2, and their students, were trained with."""

BLANK = "force_zeros_for_empty_prompt"  # in an index, of SDXL's layout
KEY = "tiue"  # of our entry in the metadata
FORMAT = 1
_AGAIN = "copy the folder again"
_ARCHITECTURES = {
    768: "stable-diffusion-v1",
    original.OPEN_CLIP: "stable-diffusion-v2-512",
    2048: "stable-diffusion-xl-v1-base",
}
_NAMES = {
    "unet": ("model.diffusion_model.", original.unet_tensors),
    "vae": ("first_stage_model.", original.vae_tensors),
    "text_encoder": ("cond_stage_model.", original.text_tensors),
}
_NAMES_XL = {
    **_NAMES,
    "text_encoder": ("conditioner.embedders.0.", original.first_text_tensors),
    "text_encoder_2": ("conditioner.embedders.1.", original.second_text_tensors),
}


@dataclass(frozen=True)
class Made:
    """What a student's weights do not say: how it was made."""

    name: str
    scheduler: dict[str, Any]  # its diffusers config
    steps: int  # K
    timesteps: list[int] | None  # where they are not the scheduler's for K
    side: int  # in pixels, of the square that it was trained on
    blank_zeros: bool | None = None  # of SDXL's layout: whether an empty prompt is all zeros

    @classmethod
    def stable_diffusion(cls, name: str, prediction_type: str = "epsilon") -> Made:
        """Where a file does not say: as Stable Diffusion's students are made."""
        scheduler = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
        return cls(name, scheduler, steps=STEPS, timesteps=None, side=512)

    @classmethod
    def of_index(
        cls, name: str, index: Mapping[str, Any], scheduler: Mapping[str, Any], side: int
    ) -> Made:
        """As a diffusers folder says, or a pipeline's config.

        Args:
            index: of ``model_index.json``.
            scheduler: its config.
            side: in pixels.
        """
        timesteps = index.get("timesteps")
        return cls(
            name,
            scheduler={k: v for k, v in scheduler.items() if not k.startswith("_")},
            steps=index.get("steps") or STEPS if timesteps is None else len(timesteps),
            timesteps=None if timesteps is None else list(timesteps),
            side=side,
            blank_zeros=index.get(BLANK, True) if "text_encoder_2" in index else None,
        )

    def schedule(self, steps: int = 0, decoders: str = "exact") -> OneWaySchedule:
        """For K = `steps`, 0 for the student's own; `decoders` as for ``from_config``."""
        own = self.timesteps if steps in (0, self.steps) else None
        return OneWaySchedule.from_config(
            self.scheduler,
            steps=None if own else steps or self.steps,
            timesteps=own,
            decoders=decoders,
        )

    @classmethod
    def read(cls, metadata: Mapping[str, Any] | None) -> Made | None:
        """From a safetensors header's metadata; None if no student of ours wrote it.

        Raises:
            TiueError: there is an entry of ours, but not one that this version understands.
        """
        entry = (metadata or {}).get(KEY)
        if entry is None:
            return None
        try:
            values = json.loads(entry) if isinstance(entry, str) else dict(entry)
            if values.pop("format") != FORMAT:
                raise ValueError
            made = cls(**values)
            whole = isinstance(made.steps, int) and isinstance(made.side, int)
            if not whole or not isinstance(made.scheduler, dict):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise TiueError(
                "this checkpoint's entry 'tiue' was written by another version: convert the "
                "student again (tiue export --to checkpoint)"
            ) from None
        return made


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is made of: configs as diffusers and transformers have them, tensors."""

    made: Made
    configs: Mapping[str, Mapping[str, Any]]  # of unet, vae, text_encoder and SDXL's second
    tensors: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of_folder(cls, folder: Path) -> Parts:
        """From a diffusers folder, without a model being built.

        Raises:
            TiueError: no such folder, or not a student's.
        """
        from safetensors.torch import load_file

        check_folder(folder)
        index = read_json(folder / "model_index.json", _AGAIN)
        names = models_of(folder)
        configs = {name: read_json(folder / name / "config.json", _AGAIN) for name in names}
        tensors: dict[str, dict[str, Any]] = {}
        for name in names:
            tensors[name] = {}
            for path in weights(folder / name):
                tensors[name].update(load_file(path))
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json", _AGAIN)
        return cls(_made(folder.resolve().name, index, scheduler, configs), configs, tensors)

    @classmethod
    def of_pipeline(cls, pipe: Any, name: str) -> Parts:
        """From a ``TiuePipeline``; LoRAs are to be fused into it before."""
        parts = (*MODELS, *["text_encoder_2"] * hasattr(pipe, "text_encoder_2"))
        models = {part: getattr(pipe, part) for part in parts}
        configs = {
            part: model.config.to_dict() if part.startswith("text") else dict(model.config)
            for part, model in models.items()
        }
        tensors = {part: model.state_dict() for part, model in models.items()}
        return cls(_made(name, pipe.config, pipe.scheduler.config, configs), configs, tensors)


def write(
    parts: Parts, out: Path, dtype: Any = None, notes: Mapping[str, str] | None = None
) -> Path:
    """Write `out`, whole or not at all.

    Args:
        dtype: of all weights, a torch dtype; as they are by default.
        notes: further metadata of the file.

    Raises:
        TiueError: an autoencoder or UNet without original names, or the file cannot be written.
    """
    from safetensors.torch import save_file

    original.check(parts.configs)
    made, names = parts.made, _NAMES_XL if "text_encoder_2" in parts.configs else _NAMES
    tensors = {
        prefix + name: (tensor if dtype is None else tensor.to(dtype)).contiguous()
        for part, (prefix, rename) in names.items()
        for name, tensor in rename(dict(parts.tensors[part]), parts.configs[part]).items()
    }
    check_writable(out.parent)
    try:
        with TemporaryDirectory(dir=out.parent, prefix=".tiue-") as folder:
            whole = Path(folder) / out.name
            said = metadata(made, parts.configs["unet"]["cross_attention_dim"])
            save_file(tensors, whole, {**said, **(notes or {})})
            sort_metadata(whole)
            to_disk(whole)
            return whole.replace(out)
    except OSError as error:
        raise explain(error, out) from error


def read_made(path: Path) -> Made | None:
    """How the student in a checkpoint file was made; None if it does not say."""
    read_header(path)
    return Made.read(safetensors_metadata(path))


def renamed(parts: Parts, name: str) -> Parts:
    """The same under another name."""
    return replace(parts, made=replace(parts.made, name=name))


def metadata(made: Made, context: int) -> dict[str, str]:
    """Ours, and what others read of it (Stability AI's model spec 1.0.0).

    Args:
        context: the width of the prompt's embedding, which tells Stable Diffusion 1, 2 and XL.
    """
    own = {k: v for k, v in vars(made).items() if k != "blank_zeros" or v is not None}
    return {
        "format": "pt",
        KEY: json.dumps({"format": FORMAT, **own}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES.get(context, "tiue"),
        "modelspec.title": made.name,
        "modelspec.resolution": f"{made.side}x{made.side}",
        "modelspec.prediction_type": made.scheduler.get("prediction_type", "epsilon"),
    }


def _made(name: str, index: Any, scheduler: Any, configs: Mapping[str, Any]) -> Made:
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    side = max(both_sides(configs["unet"].get("sample_size") or 64))
    return Made.of_index(name, index, scheduler, side * factor)
