"""Checkpoints in safetensors alone: models, moving averages and optimizers, nothing pickled.

Randomness needs no saving: every update draws from a generator seeded by (seed, update, process),
so an interrupted run continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import TiueError
from ..io.files import to_disk

#: Recipe keys that say where, how long and how often, not what is learned.
MAY_CHANGE = {
    "out", "steps", "log_every", "checkpoint_every", "sample_every", "keep", "validate_every",
    "validate_count", "embeddings", "pairs_from", "images_from",
}  # fmt: skip


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat tensors named ``<parameter index>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, entries in state.items()
        for key, value in _flat(entries)
    }


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """8-bit Adam keeps a dictionary within its state: "outer/inner" names what is in it."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", v) for inner, v in _flat(value))
        else:
            yield key, value


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        outer, _, inner = key.rpartition("/")
        entries = state.setdefault(int(index), {})
        if outer:
            entries = entries.setdefault(outer, {})
        # A count that was a plain number, as 8-bit Adam's, is one again.
        count = tensor.dtype == torch.int64 and tensor.ndim == 0
        entries[inner] = tensor.item() if count else tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    recipe: Mapping[str, Any] | None = None,
    *,
    keep: int = 1,
    scaler: Any = None,
) -> Path:
    """Write ``folder/step-N`` whole or not at all, then drop all but the ``keep`` newest.

    ``scaler`` is fp16's gradient scaler, if there is one: its scale and how long that has held.
    """
    final = folder / f"step-{step:07d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in modules.items():
        save_file(_trainable(module), partial / f"{name}.safetensors")
    for name, module in averages.items():
        save_file(_trainable(module), partial / f"{name}.ema.safetensors")
    for name, optimizer in optimizers.items():
        save_file(optimizer_tensors(optimizer), partial / f"{name}.optimizer.safetensors")
    state = {"step": step, "recipe": dict(recipe or {})}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    for file in (*partial.iterdir(), partial):
        to_disk(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    to_disk(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def load_latest(
    folder: Path,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    recipe: Mapping[str, Any] | None = None,
    *,
    scaler: Any = None,
) -> int:
    """Restore the newest checkpoint in place; returns the number of updates made, 0 if none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return 0
    newest = found[-1]
    _check_recipe(newest, recipe or {})
    try:
        for name, module in modules.items():
            module.load_state_dict(load_file(newest / f"{name}.safetensors"), strict=False)
        for name, module in averages.items():
            module.load_state_dict(load_file(newest / f"{name}.ema.safetensors"), strict=False)
        for name, optimizer in optimizers.items():
            load_optimizer(optimizer, load_file(newest / f"{name}.optimizer.safetensors"))
        state = json.loads((newest / "state.json").read_text())
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise TiueError(
            f"Checkpoint {newest} does not fit this recipe ({str(error).splitlines()[0]}): "
            "give the run another `out`, or delete the checkpoint to start again."
        ) from None


def _check_recipe(checkpoint: Path, recipe: Mapping[str, Any]) -> None:
    """Only what a run may change on its way may differ from the recipe that made the checkpoint."""
    try:
        made = json.loads((checkpoint / "state.json").read_text()).get("recipe") or {}
    except (OSError, ValueError):
        made = {}
    other = [key for key in made if key not in MAY_CHANGE and recipe.get(key) != made[key]]
    if other and recipe:
        key = other[0]
        raise TiueError(
            f"Checkpoint {checkpoint} was made by another recipe ({key}: {made[key]}, now "
            f"{recipe.get(key)}): give the run another `out`, or delete the checkpoint."
        )


def _trainable(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that learn and all buffers; what stays frozen is in the teacher's own folder."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
        if name not in frozen
    }
