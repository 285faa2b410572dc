"""Diffusers folders in Stable Diffusion's layout: is this one, and which of its files are read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import PICKLES, read_header

MODELS = ("unet", "vae", "text_encoder")
_LIBRARIES = ("diffusers", "transformers")  # no code from anywhere else


def check_folder(folder: Path, models: Sequence[str] | None = None) -> Path:
    """Return `folder` if a Stable Diffusion-like student can be read from it.

    Args:
        models: those whose weights must be there; by default all that its index names.

    Raises:
        TiueError: no UNet, a missing file, only pickles, a broken header, or code of its own.
    """
    if not folder.is_dir():
        raise TiueError(f"{folder} does not exist: check the path")
    index = _json(folder / "model_index.json", "point at the folder that save_pretrained wrote")
    if not isinstance(index.get("unet"), list) or not (folder / "unet").is_dir():
        raise TiueError(f"{folder} has no UNet: point at a Stable Diffusion-like diffusers folder")
    if not isinstance(index.get("_class_name"), str):
        raise TiueError(f"{folder} brings code of its own: use a plain Stable Diffusion folder")
    models = models_of(folder) if models is None else models
    second = ("tokenizer_2",) if "text_encoder_2" in models else ()
    for name in (*models, "tokenizer", *second, "scheduler"):
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in _LIBRARIES:
            raise TiueError(f"{folder} has no {name} of diffusers or transformers: use another")
    for name in models:
        _json(folder / name / "config.json", "copy the folder again")
        for path in weights(folder, name):
            read_header(path)
    _json(folder / "scheduler" / "scheduler_config.json", "copy the folder again")
    return folder


def models_of(folder: Path) -> tuple[str, ...]:
    """The models that a folder's index names: those of Stable Diffusion, and SDXL's one more."""
    index = _json(folder / "model_index.json", "point at the folder that save_pretrained wrote")
    second = index.get("text_encoder_2")
    has = isinstance(second, list) and second[:1] == ["transformers"]
    return (*MODELS, "text_encoder_2") if has else MODELS


def weights(folder: Path, name: str) -> list[Path]:
    """The safetensors files of one model of a folder: plain if it has them, else fp16."""
    files = sorted(path for path in (folder / name).glob("*.safetensors"))
    plain = [path for path in files if ".fp16" not in path.name]
    for index in sorted((folder / name).glob("*.safetensors.index*.json")):
        for shard in set(_json(index, "copy it again").get("weight_map", {}).values()):
            if not (folder / name / str(shard)).is_file():
                raise TiueError(f"{folder / name / str(shard)} is missing: copy the folder again")
    if files:
        return plain or files
    if any(path.suffix in PICKLES for path in (folder / name).glob("*")):
        raise TiueError(
            f"{folder / name} holds only pickles, which can run code when they are read: "
            "convert them to .safetensors"
        )
    raise TiueError(f"{folder / name} has no .safetensors file: copy the folder again")


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TiueError(f"{path} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError):
        raise TiueError(f"{path} is not readable JSON: {remedy}") from None
    if not isinstance(content, dict):
        raise TiueError(f"{path} is not a JSON object: {remedy}")
    return content


def reading(folder: Path, dtype: Any = None) -> dict[str, Any]:
    """The arguments with which diffusers reads `folder`: safetensors only, and fp16 if need be."""
    plain = all(".fp16" not in path.name for path in weights(folder, "unet"))
    return {
        **(dtype_argument(dtype) if dtype is not None else {}),
        "use_safetensors": True,
        "local_files_only": True,
        "variant": None if plain else "fp16",
    }


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """`dtype` under the name that this version of diffusers wants."""
    from diffusers.pipelines import pipeline_utils

    return {"dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype": dtype}
