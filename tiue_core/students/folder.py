"""Diffusers folders in Stable Diffusion's layout: is this one, and which of its files are read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import PICKLES, check_headers

#: How diffusers reads what is not read here: safetensors, no network.
READING = {"use_safetensors": True, "local_files_only": True}
MODELS = ("unet", "vae", "text_encoder")
_LIBRARIES = ("diffusers", "transformers")  # no code from anywhere else
#: NAME.safetensors, NAME.VARIANT.safetensors, and either in pieces (two ways to write it)
_FILE = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>[\w-]*?\w))??"
    r"(-(?P<number>\d{5})-of-(?P<count>\d{5}))?(\.(?P<late>\w+))?\.safetensors"
).fullmatch
_PLAIN = re.compile(r"[\w-][\w.-]*\.safetensors").fullmatch
_MOST_TIMESTEPS = 100_000
_ORDER = ("", "fp32", "fp16", "bf16")  #: of what is read where there are several


#: Keys of configs that are computed with, of a VAE, a scheduler and a tokenizer.
NUMBERS = {
    "beta_end",
    "beta_start",
    "model_max_length",
    "num_train_timesteps",
    "scaling_factor",
    "shift_factor",
    "steps_offset",
}


def check_folder(folder: Path, models: Sequence[str] | None = None) -> Path:
    """Return `folder` if a Stable Diffusion-like student can be read from it.

    Args:
        models: those whose weights must be there; by default all that its index names.

    Raises:
        TiueError: no UNet, a missing file, only pickles, a broken header, or code of its own.
    """
    if not folder.is_dir():
        raise TiueError(f"{folder} does not exist: check the path")
    index = read_json(folder / "model_index.json", "point at the folder that save_pretrained wrote")
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
    for name in (*models, "tokenizer", *second, "scheduler"):
        for path in (folder / name).glob("*"):
            if path.suffix in (".json", ".txt", ".safetensors"):
                _check_link(path, folder)
    for name in models:
        read_json(folder / name / "config.json", "copy the folder again")
    check_headers([path for name in models for path in weights(folder / name)])
    said = read_json(folder / "scheduler" / "scheduler_config.json", "copy the folder again")
    steps = said.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= _MOST_TIMESTEPS:
        raise TiueError(
            f"{folder}: the scheduler's num_train_timesteps is {steps!r:.40}, give 1 to "
            f"{_MOST_TIMESTEPS}: copy the folder again"
        )
    return folder


def models_of(folder: Path) -> tuple[str, ...]:
    """The models that a folder's index names: those of Stable Diffusion, and SDXL's one more."""
    index = read_json(folder / "model_index.json", "point at the folder that save_pretrained wrote")
    second = index.get("text_encoder_2")
    has = isinstance(second, list) and second[:1] == ["transformers"]
    return (*MODELS, "text_encoder_2") if has else MODELS


def contents(
    folder: Path, unet: Path | None = None, without: Sequence[str] = ()
) -> tuple[list[Path], dict[str, Any]]:
    """What decides a student's pictures: the files of its weights, and by model the configs
    without what says only who wrote them, and in which release.

    Args:
        unet: a UNet's folder that stands in for the one in `folder`.
        without: models whose weights come from elsewhere.
    """
    homes = {name: folder / name for name in models_of(folder)}
    homes["unet"] = unet or homes["unet"]
    files = [path for name in homes if name not in without for path in weights(homes[name])]
    idle = ("transformers_version", "torch_dtype", "dtype", "architectures")
    configs: dict[str, Any] = {}
    for name, home in homes.items():
        content = read_json(home / "config.json", "copy the folder again")
        configs[name] = {k: v for k, v in content.items() if k[:1] != "_" and k not in idle}
    index = read_json(folder / "model_index.json", "copy the folder again")
    configs["own"] = {key: index.get(key) for key in ("steps", "timesteps")}
    return files, configs


def weights(folder: Path) -> list[Path]:
    """The safetensors files of one model, by the names that the libraries give them.

    One whole set: the plain one if it is there, else half precision, else what there is. Pieces
    say themselves how many they are; an index is asked only where they have names of their own.

    Raises:
        TiueError: there is no whole set, or a file is not one of this folder.
    """
    files, lacking = whole_set([path.name for path in folder.glob("*.safetensors")])
    files = files or ([] if lacking else _of_index(folder))
    if files:
        for name in files:
            _check_link(folder / name, folder.parent)
        return [folder / name for name in files]
    if lacking:
        raise TiueError(f"{folder / lacking} is missing: copy the folder again")
    if any(path.suffix in PICKLES for path in folder.glob("*")):
        raise TiueError(
            f"{folder} holds only pickles, which can run code when they are read: "
            "convert them to .safetensors"
        )
    raise TiueError(f"{folder} has no .safetensors file: copy the folder again")


def whole_set(names: Sequence[str]) -> tuple[list[str], str]:
    """The files of one whole set among ``names``, or the first that is missing, if any is."""
    names, lacking = sorted(names), ""
    for variant in _variants(names):
        files, missing = _set(names, variant)
        if files:
            return files, ""
        lacking = lacking or missing
    return [], lacking


def _variants(names: Sequence[str]) -> list[str]:
    found = {match["variant"] or match["late"] or "" for name in names if (match := _FILE(name))}
    return sorted(found, key=lambda v: (_ORDER.index(v) if v in _ORDER else len(_ORDER), v))


def _set(names: Sequence[str], variant: str) -> tuple[list[str], str]:
    """The files of one variant, or the first that is missing."""
    whole: list[tuple[str, re.Match[str]]] = []
    parts: list[tuple[str, re.Match[str]]] = []
    for name in names:
        match = _FILE(name)
        if match and (match["variant"] or match["late"] or "") == variant:
            (parts if match["count"] else whole).append((name, match))
    if whole:
        return [whole[0][0]], ""
    count = int(parts[0][1]["count"])
    for number in range(1, count + 1):
        if number > len(parts) or int(parts[number - 1][1]["number"]) != number:
            name, match = parts[0]
            start, end = match.span("number")
            return [], f"{name[:start]}{number:05}{name[end:]}"
    return [name for name, _ in parts], ""


def _of_index(folder: Path) -> list[str]:
    """The files that an index names, each a plain name of a safetensors file beside it."""
    for index in sorted(folder.glob("*.safetensors*.json")):
        shards = read_json(index, "copy it again").get("weight_map")
        if not isinstance(shards, dict):
            raise TiueError(f"{index} names no files: copy it again")
        for name in dict.fromkeys(map(str, shards.values())):
            if not _PLAIN(name):
                raise TiueError(
                    f"{index} names {name[:80]!r}, which is no safetensors file beside it: "
                    "use another copy"
                )
            if not (folder / name).is_file():
                raise TiueError(f"{folder / name} is missing: copy the folder again")
        return sorted(set(shards.values()))
    return []


def _check_link(path: Path, root: Path) -> None:
    """Refuse a link that leads out of ``root``; the hub's store of the repository is in it."""
    real, home = path.resolve(), root.resolve()
    homes = [home]
    for parent in home.parents:  # .../models--owner--name/snapshots/COMMIT
        if parent.name == "snapshots":
            homes.append(parent.parent / "blobs")
    if not any(real.is_relative_to(one) for one in homes):
        raise TiueError(f"{path} is a link that leads out of {root}: copy the file itself")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TiueError(f"{path} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError):
        raise TiueError(f"{path} is not readable JSON: {remedy}") from None
    if not isinstance(content, dict):
        raise TiueError(f"{path} is not a JSON object: {remedy}")
    for key in NUMBERS & content.keys():
        value = content[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TiueError(f"{path}: {key} is {value!r:.80}, which is no number: {remedy}")
    return content
