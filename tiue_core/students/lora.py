"""LoRA adapters: loaded through diffusers, but only where every key fits the student.

diffusers takes what it recognises and leaves the rest with a log line at most: a LoRA for another
model then changes nothing, in silence. Here each pair of matrices is held against the layer it is
for before anything is loaded.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import file_hash, read_header, safetensors_metadata, tensors_hash
from .folder import read_json
from .models import read_tensors

_UP = re.compile(r"\.(lora_B|lora\.up|lora_linear_layer\.up)\.weight$")
_PEFT = "base_model.model."
_MATRIX = re.compile(r"[._](lora_([AB]|down|up)|(lora_linear_layer|lora)\.(down|up))\.weight$")


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly to apply it."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """`FILE` or `FILE:STRENGTH`, as on the command line; the header is checked.

        Raises:
            TiueError: no such file, not a safetensors file, or a strength that is not finite.
        """
        file, colon, strength = text.rpartition(":")
        lora = cls(Path(text).expanduser())
        if colon and not lora.path.exists() and _is_number(strength):
            lora = cls(Path(file).expanduser(), float(strength))
        if not math.isfinite(lora.strength):
            raise TiueError(f"the strength of LoRA {file} is {strength}: give a number like 0.8")
        if not read_header(lora.path):
            raise TiueError(f"{lora.path} holds no tensors: use a LoRA file")
        return lora

    @property
    def name(self) -> str:
        return self.path.stem

    def record(self) -> dict[str, Any]:
        """What an image's metadata keeps of it: name, strength, SHA-256 of its content."""
        return {"name": self.name, "strength": self.strength, "hash": tensors_hash(self.path)}

    def is_one(self, recorded: str) -> bool:
        """Whether a record's hash is this file's; older records have the hash of all its bytes."""
        return recorded in (tensors_hash(self.path), file_hash(self.path))


def load_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Load LoRAs (kohya's or diffusers' naming) into a pipeline and set their strengths.

    Raises:
        TiueError: a file is not a LoRA, or is one for another model.
    """
    if not loras:
        return
    from . import lycoris  # torch, which naming a LoRA does not need

    names, strengths, several = [], [], _together(loras)
    files = [read_tensors([lora.path]) for lora in several]
    for tensors, lora in zip(files, several, strict=True):
        _check_numbers(tensors, lora.path)
    for index, (tensors, lora) in enumerate(zip(files, several, strict=True)):
        if lycoris.is_lycoris(tensors):
            if not hasattr(pipe, "_merged"):
                raise TiueError(f"{lora.path} is no plain LoRA: this system takes only those")
            lycoris.merge(pipe, tensors, lora.strength, lora.path)
            continue
        tensors = _in_shape(pipe, _of_peft(pipe, tensors, lora.path))
        _check_fit(pipe, lora.path, tensors)
        # peft uses adapter names as module names, where a dot would be a level
        names.append(f"{index}_{re.sub(r'[^0-9A-Za-z_]', '_', lora.name)}")
        try:
            with warnings.catch_warnings():  # peft warns of a second adapter, which is meant
                warnings.filterwarnings("ignore", module="peft")
                pipe.load_lora_weights(dict(tensors), adapter_name=names[-1])
        except (ValueError, RuntimeError, KeyError) as error:
            raise TiueError(f"{_not_ours(lora.path)} ({_first_line(error)})") from error
        strengths.append(lora.strength)
    if names:
        pipe.set_adapters(names, strengths)


def _together(loras: Sequence[Lora]) -> list[Lora]:
    """Each file once: given twice, its strengths add up."""
    total: dict[Path, float] = {}
    for lora in loras:
        total[lora.path] = total.get(lora.path, 0.0) + lora.strength
    return [Lora(path, strength) for path, strength in total.items()]


def _check_numbers(tensors: Mapping[str, Any], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise TiueError(f"{path} is broken ({name} holds NaN or infinity): use another file")


def _of_peft(pipe: Any, tensors: dict[str, Any], path: Path) -> dict[str, Any]:
    """PEFT's own files (``base_model.model.LAYER...``) in diffusers' names, alpha / rank in B.

    Raises:
        TiueError: the config that says alpha is not beside it.
    """
    if not all(name.startswith(_PEFT) for name in tensors):
        said = _adapter_metadata(path)
        return _scaled(tensors, said) if said else tensors
    config = read_json(path.with_name("adapter_config.json"), "copy it from beside the LoRA")
    unet = dict(pipe.unet.named_modules())
    found = {}
    for name, tensor in tensors.items():
        layer = name.removeprefix(_PEFT)
        plain = re.split(r"\.lora_", layer)[0]
        found[f"{'unet' if plain in unet else 'text_encoder'}.{layer}"] = tensor
    return _scaled(found, {"unet": config, "text_encoder": config})


def _adapter_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """What diffusers notes in a file of its own of alpha and the like, by model."""
    try:
        said = json.loads(safetensors_metadata(path).get("lora_adapter_metadata", "{}"))
    except ValueError:
        said = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in (said if isinstance(said, dict) else {}).items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def _scaled(tensors: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """alpha / rank taken into B, the rank as the matrices have it, whatever a config claims."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        part, _, layer = name.partition(".")
        config = configs.get(part) or {}
        side = _UP.search(layer)
        if side and "lora_alpha" in config:
            rank, plain = tensor.shape[1], layer[: side.start()]
            alpha = _pattern(config.get("alpha_pattern"), plain, config["lora_alpha"])
            factor = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            found[name] = (tensor.float() * factor).to(tensor.dtype) if factor != 1 else tensor
    return found


def _pattern(patterns: Any, layer: str, default: Any) -> float:
    found = default
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            found = value
            break
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TiueError(f"its config says alpha is {found!r:.80} for {layer}, which is no number")
    return float(found)


def _in_shape(pipe: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """1x1 kernels as the layer has them: trainers store a linear layer's as a convolution's, and
    the other way round."""
    dims = {
        _flat(name.removesuffix(".base_layer")): module.weight.ndim
        for name, module in pipe.unet.named_modules()
        if hasattr(module, "weight")
    }
    found = {}
    for name, tensor in tensors.items():
        layer = re.sub(r"^(lora_)?unet[._]", "", _MATRIX.sub("", name))
        wanted = dims.get(_flat(layer), tensor.ndim)
        if (tensor.ndim, wanted) == (4, 2) and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        elif (tensor.ndim, wanted) == (2, 4):
            tensor = tensor[:, :, None, None]
        found[name] = tensor.contiguous()
    return found


def _flat(layer: str) -> str:
    return layer.replace(".", "_")


def _check_fit(pipe: Any, path: Path, tensors: dict[str, Any]) -> None:
    for key, shape in _pairs(pipe, path, tensors):
        component, _, layer = key.partition(".")
        model = getattr(pipe, component, None)
        if component.startswith("text_encoder") and not hasattr(model, "text_model"):
            layer = layer.removeprefix("text_model.")  # flattened in transformers 5
        module = dict(model.named_modules()).get(layer) if model is not None else None
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        if weight is None:
            raise TiueError(f"{_not_ours(path)} (this one has no {key})")
        ours = tuple(weight.shape[:2])
        if shape != ours:
            raise TiueError(f"{_not_ours(path)} ({key} is {ours} here, {shape} there)")


def _pairs(pipe: Any, path: Path, tensors: dict[str, Any]) -> list[tuple[str, tuple[int, int]]]:
    """(layer, (out, in)) of every pair of matrices in a LoRA file, in diffusers' names."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft

    try:
        second = getattr(pipe, "text_encoder_2", None) is not None
        more = {"unet_config": pipe.unet.config} if second else {}
        tensors, _ = pipe.lora_state_dict(dict(tensors), **more)
        if not second and any(key.startswith("text_encoder_2.") for key in tensors):
            raise TiueError(f"{_not_ours(path)} (it is for two text encoders, as SDXL has)")
        text = {key: tensor for key, tensor in tensors.items() if key.startswith("text_encoder")}
        unet = {key: tensor for key, tensor in tensors.items() if key not in text}
        tensors = convert_unet_state_dict_to_peft(unet)
        tensors |= convert_state_dict_to_diffusers(text) if text else {}
    except TiueError:
        raise
    except Exception as error:  # the converters assert, index and raise as they please
        raise TiueError(f"{_not_a_lora(path)} ({_first_line(error)})") from error
    down: dict[str, tuple[int, ...]] = {}
    up: dict[str, tuple[int, ...]] = {}
    for key, tensor in tensors.items():
        layer = _MATRIX.sub("", key)
        if layer == key or tensor.ndim < 2:
            continue
        side = down if re.search(r"(lora_A|down)\.weight$", key) else up
        side[layer] = tensor.shape
    if not down or down.keys() != up.keys():
        raise TiueError(_not_a_lora(path))
    return [(layer, (up[layer][0], down[layer][1])) for layer in down]


def _not_ours(path: Path) -> str:
    return f"{path} is a LoRA for another model: use one trained for this student's base model"


def _not_a_lora(path: Path) -> str:
    return f"{path} is not a LoRA that can be read: use one in kohya's or diffusers' naming"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
