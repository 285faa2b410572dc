"""Checkpoints in safetensors alone: models, moving averages and optimizers, nothing pickled.

Randomness needs no saving: every update draws from a generator seeded by (seed, update, process),
so an interrupted run continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import TiueError


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat tensors named ``<parameter index>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> Path:
    """Write ``folder/step-N`` whole or not at all, then drop the older ones."""
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
    (partial / "state.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old)
    return final


def load_latest(
    folder: Path,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> int:
    """Restore the newest checkpoint in place; returns the number of updates made, 0 if none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return 0
    newest = found[-1]
    try:
        for name, module in modules.items():
            module.load_state_dict(load_file(newest / f"{name}.safetensors"), strict=False)
        for name, module in averages.items():
            module.load_state_dict(load_file(newest / f"{name}.ema.safetensors"), strict=False)
        for name, optimizer in optimizers.items():
            load_optimizer(optimizer, load_file(newest / f"{name}.optimizer.safetensors"))
        return int(json.loads((newest / "state.json").read_text())["step"])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise TiueError(
            f"Checkpoint {newest} does not fit this recipe ({str(error).splitlines()[0]}): "
            "give the run another `out`, or delete the checkpoint to start again."
        ) from None


def _trainable(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that learn and all buffers; what stays frozen is in the teacher's own folder."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
        if name not in frozen
    }
