"""LoRA tensors as diffusers reads them: PEFT's names, what notes say of alpha, kernels' shapes."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import safetensors_metadata
from .folder import read_json
from .original import unet_layers

_UP = re.compile(r"\.(lora_B|lora\.up|lora_linear_layer\.up)\.(weight|bias)$")
_ATTENTION = re.compile(
    r"(lora_te[12]?_)(.+_self_attn_)([qkv]|out)_proj\.lora_down\.weight"
).fullmatch
#: SDXL's layers of the sizes, whose number diffusers drops from its own names in kohya's form
_SIZES = {
    "lora_unet_add_embedding_linear_1": "lora_unet_label_emb_0_0",
    "lora_unet_add_embedding_linear_2": "lora_unet_label_emb_0_2",
}
_PEFT = "base_model.model."
MATRIX = re.compile(r"[._](lora_([AB]|down|up)|(lora_linear_layer|lora)\.(down|up))\.weight$")
#: What diffusers takes beside the matrices; anything else it leaves out
_BESIDE = re.compile(r"\.(alpha|lora_magnitude_vector(\.weight)?|lora_B\.bias)$")
#: PEFT's ways to begin that change the model's own weights, which no file of matrices holds
_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def recognisable(tensors: dict[str, Any]) -> dict[str, Any]:
    """kohya's names as diffusers knows them: a text encoder's attention by its ``out_proj``,
    without which it is dropped (one of zeros is added where a file has none); SDXL's layers of the
    sizes by their original names."""
    has: set[str] = set()
    first: dict[str, tuple[str, Any]] = {}
    for name, tensor in tensors.items():
        if match := _ATTENTION(name):
            if match[3] == "out":
                has.add(match[1])
            else:
                first.setdefault(match[1], (f"{match[1]}{match[2]}out_proj", tensor))
    found = {}
    for name, tensor in tensors.items():
        layer, dot, rest = name.partition(".")
        found[_SIZES.get(layer, layer) + dot + rest] = tensor
    for prefix, (layer, down) in first.items():
        if prefix not in has:
            width = down.shape[-1]
            found[f"{layer}.lora_down.weight"] = down.new_zeros(1, width)
            found[f"{layer}.lora_up.weight"] = down.new_zeros(width, 1)
    return found


def of_peft(pipe: Any, tensors: dict[str, Any], path: Path) -> dict[str, Any]:
    """PEFT's own files (``base_model.model.LAYER...``) in diffusers' names, alpha / rank in B.

    Raises:
        TiueError: the config that says alpha is not beside it, or it says that the model was
            another one.
    """
    if not all(name.startswith(_PEFT) for name in tensors):
        said = _adapter_metadata(path)
        _check_start(said.values(), path)
        return _scaled(tensors, said) if said else tensors
    config = read_json(path.with_name("adapter_config.json"), "copy it from beside the LoRA")
    _check_start([config], path)
    layers = {name: name.removeprefix(_PEFT) for name in tensors}
    part = _part_of(
        pipe, {re.split(r"\.lora_", layer)[0] for layer in layers.values()}, config, path
    )
    return _scaled({f"{part}.{layers[name]}": t for name, t in tensors.items()}, {part: config})


def check_all_used(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that holds more than matrices and what belongs to them.

    Raises:
        TiueError: it does; the first is named.
    """
    matrices = [name for name in tensors if MATRIX.search(name)]
    others = [name for name in tensors if not MATRIX.search(name) and not _BESIDE.search(name)]
    if matrices and others:
        raise TiueError(
            f"{path} holds {len(others)} tensors beside its matrices that would be left out, "
            f"{min(others)} for one: save it as a plain LoRA"
        )


def _check_start(configs: Iterable[Mapping[str, Any]], path: Path) -> None:
    for config in configs:
        start = str(config.get("init_lora_weights", "")).lower()
        if start.startswith(_CHANGING):
            raise TiueError(
                f"{path} was trained from {start}, which changes the model's own weights: save it "
                "by PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )


def _part_of(pipe: Any, layers: set[str], config: Mapping[str, Any], path: Path) -> str:
    """The model that one of PEFT's own files is for: by its layers, of two alike by its class."""
    plain = {layer.removeprefix("text_model.") for layer in layers}
    models = {
        name: getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")
    }
    fitting = [
        name
        for name, model in models.items()
        if model is not None
        and plain <= {one.removeprefix("text_model.") for one, _ in model.named_modules()}
    ]
    said = (config.get("auto_mapping") or {}).get("base_model_class")
    named = [name for name in fitting if type(models[name]).__name__ == said]
    if len(named or fitting) > 1:
        raise TiueError(
            f"{path} may be for {' or '.join(fitting)}, and its adapter_config.json does not say "
            "(auto_mapping): save it by diffusers' save_lora_weights"
        )
    return (named or fitting or ["unet"])[0]


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
            plain, down = layer[: side.start()], name.removesuffix("bias").removesuffix("weight")
            rank = tensors[f"{down}weight"].shape[1]
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


def in_shape(pipe: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """1x1 kernels as the layer has them: trainers store a linear layer's as a convolution's, and
    the other way round."""
    dims = {
        _flat(name.removesuffix(".base_layer")): module.weight.ndim
        for name, module in pipe.unet.named_modules()
        if hasattr(module, "weight")
    }
    dims |= {
        _flat(k): dims[_flat(v)] for k, v in unet_layers(pipe.unet).items() if _flat(v) in dims
    }
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("unet."):  # of both namings in one file diffusers reads one
            name = re.sub(r"\.lora\.down(?=\.weight$)", ".lora_A", name)
            name = re.sub(r"\.lora\.up(?=\.weight$)", ".lora_B", name)
        layer = re.sub(r"^(lora_)?unet[._]", "", MATRIX.sub("", name))
        wanted = dims.get(_flat(layer), tensor.ndim)
        if (tensor.ndim, wanted) == (4, 2) and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        elif (tensor.ndim, wanted) == (2, 4):
            tensor = tensor[:, :, None, None]
        found[name] = tensor.contiguous()
    return found


def of_one_rank(tensors: dict[str, Any]) -> dict[str, Any]:
    """A model's matrices all of its largest rank, with zeros, where no alpha is beside them:
    diffusers 0.36 scales those of another rank than most by the quotient of the two."""
    found = {name: one for name, one in tensors.items() if MATRIX.search(name) and one.ndim > 1}
    axes = {name: int(re.search(r"(lora_B|up)\.weight$", name) is not None) for name in found}
    ranks: dict[str, set[int]] = {}
    for name, axis in axes.items():
        ranks.setdefault(MATRIX.sub("", name), set()).add(tensors[name].shape[axis])
    broken = any(len(both) > 1 for both in ranks.values())  # which is found when it is loaded
    if broken or any(name.endswith(".alpha") for name in tensors):
        return tensors
    most: dict[str, int] = {}
    for name, axis in axes.items():
        part = name.partition(".")[0]
        most[part] = max(most.get(part, 0), tensors[name].shape[axis])
    found = dict(tensors)
    for name, axis in axes.items():
        shape = list(tensors[name].shape)
        shape[axis] = most[name.partition(".")[0]]
        if shape[axis] != tensors[name].shape[axis]:
            found[name] = tensors[name].new_zeros(shape)
            found[name].narrow(axis, 0, tensors[name].shape[axis]).copy_(tensors[name])
    return found


def _flat(layer: str) -> str:
    return layer.replace(".", "_")
