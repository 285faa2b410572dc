"""LoRA adapters: loaded through diffusers, but only where every key fits the student.

diffusers takes what it recognises and leaves the rest with a log line at most: a LoRA for another
model then changes nothing, in silence. Here each pair of matrices is held against the layer it is
for before anything is loaded.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.files import file_hash, read_header, tensors_hash
from ..io.messages import first_line
from .lora_names import MATRIX, check_all_used, in_shape, of_one_rank, of_peft, recognisable
from .models import read_tensors


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

    several = _together(loras)
    files = [read_tensors([lora.path]) for lora in several]
    for tensors, lora in zip(files, several, strict=True):
        check_numbers(tensors, lora.path)
    names: list[str] = []
    strengths: list[float] = []
    with _whole(pipe, names):
        for tensors, lora in zip(files, several, strict=True):
            if lycoris.is_lycoris(tensors):
                if not hasattr(pipe, "_merged"):
                    raise TiueError(f"{lora.path} is no plain LoRA: this system takes only those")
                lycoris.merge(pipe, tensors, lora.strength, lora.path)
                continue
            # peft uses adapter names as module names, where a dot would be a level
            names.append(f"{len(names)}_{re.sub(r'[^0-9A-Za-z_]', '_', lora.name)}")
            strengths.append(lora.strength)
            _load(pipe, tensors, lora.path, names[-1])
    if names:
        pipe.set_adapters(names, strengths)


def load_file(pipe: Any, source: Any, name: str | None, options: Mapping[str, Any]) -> bool:
    """What a pipeline's own ``load_lora_weights`` is asked for, if that is a file on this disk and
    nothing more: the same checks as everywhere, the kinds that are merged too, at strength 1.

    Args:
        name: the adapter's.

    Returns:
        Whether it was loaded: anything else is for diffusers.

    Raises:
        TiueError: see ``load_loras``; nothing has changed.
    """
    if not isinstance(source, str | Path) or options.keys() - {"weight_name", "use_safetensors"}:
        return False
    path = Path(source)
    if path.is_dir():
        path /= options.get("weight_name") or "pytorch_lora_weights.safetensors"  # diffusers' own
    if not path.is_file():
        return False
    from . import lycoris

    tensors = read_tensors([path])
    check_numbers(tensors, path)
    if lycoris.is_lycoris(tensors):
        lycoris.merge(pipe, tensors, 1.0, path)
        return True
    known = _adapters(pipe)
    name = name or next(n for i in count() if (n := f"default_{i}") not in known)
    if name in known:
        raise TiueError(f"a LoRA called {name} is loaded already: give another adapter_name")
    with _whole(pipe, [name]):
        _load(pipe, tensors, path, name)
    return True


@contextmanager
def _whole(pipe: Any, names: list[str]) -> Iterator[None]:
    """Where one file cannot be used, nothing is left of it, or of those before it: neither
    adapters of these names nor what was merged."""
    from . import lycoris

    merged = len(getattr(pipe, "_merged", []))
    try:
        yield
    except TiueError:
        known = _adapters(pipe)
        if known & {*names}:
            pipe.delete_adapters([name for name in names if name in known])
        lycoris.restore(pipe, merged)
        raise


def _adapters(pipe: Any) -> set[str]:
    return {name for listed in pipe.get_list_adapters().values() for name in listed}


def _load(pipe: Any, tensors: dict[str, Any], path: Path, name: str) -> None:
    """Have diffusers load one file as adapter `name`, all of it."""
    check_all_used(tensors, path)
    tensors = of_one_rank(in_shape(pipe, of_peft(pipe, recognisable(tensors), path)))
    layers = check_fit(pipe, path, tensors)
    try:
        with warnings.catch_warnings():  # peft warns of a second adapter, which is meant
            warnings.filterwarnings("ignore", module="peft")
            pipe.load_lora_weights(dict(tensors), adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise TiueError(f"{_not_ours(path)} ({first_line(error)})") from error
    left_out = [key for key, layer in layers.items() if not _holds(layer(), name)]
    if left_out:
        raise TiueError(
            f"{path} cannot be used: diffusers leaves out {len(left_out)} of its {len(layers)} "
            f"layers, {left_out[0]} for one. Save it in kohya's naming"
        )


def _together(loras: Sequence[Lora]) -> list[Lora]:
    """Each file once: given twice, its strengths add up."""
    total: dict[Path, float] = {}
    for lora in loras:
        total[lora.path] = total.get(lora.path, 0.0) + lora.strength
    return [Lora(path, strength) for path, strength in total.items()]


def check_numbers(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse a file of broken numbers, or of integers where weights belong.

    Raises:
        TiueError: one of its tensors holds them; it is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise TiueError(f"{path} is broken ({name} holds NaN or infinity): use another file")
        if not tensor.is_floating_point() and tensor.ndim > 1:
            raise TiueError(
                f"{path}: {name} holds integers, not weights: use a file in float16 or float32"
            )


def check_fit(pipe: Any, path: Path, tensors: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The layers that a file is for, by name, to be looked up again once it is loaded.

    Raises:
        TiueError: one of them is not the pipeline's, or has another shape there.
    """
    found: dict[str, Callable[[], Any]] = {}
    for key, shape in _pairs(pipe, path, tensors):
        component, _, layer = key.partition(".")
        model = getattr(pipe, component, None)
        if component.startswith("text_encoder") and not hasattr(model, "text_model"):
            layer = layer.removeprefix("text_model.")  # flattened in transformers 5
        module = dict(model.named_modules()).get(layer) if model is not None else None
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        if model is None or weight is None:
            raise TiueError(f"{_not_ours(path)} (this one has no {key})")
        ours = tuple(weight.shape[:2])
        if shape != ours:
            raise TiueError(f"{_not_ours(path)} ({key} is {ours} here, {shape} there)")
        found[key] = partial(model.get_submodule, layer)
    return found


def _holds(layer: Any, adapter: str) -> bool:
    return adapter in getattr(layer, "lora_A", {})


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
        raise TiueError(f"{_not_a_lora(path)} ({first_line(error)})") from error
    down: dict[str, tuple[int, ...]] = {}
    up: dict[str, tuple[int, ...]] = {}
    for key, tensor in tensors.items():
        layer = MATRIX.sub("", key)
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
