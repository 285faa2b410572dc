"""A student that differs from its teacher by a few small matrices, so it fits in a small file.

What one student learned is the difference of its weights from the teacher's. Cut to its largest
singular values (Eckart and Young: the nearest of that rank), spread over the layers so that every
number kept explains as much of the difference as it can, it becomes adapters that learn on alone.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor, nn

from ..io.files import write_atomically
from ..students.low_rank import LOW_RANK, add_low_rank


def give_adapters(unet: Any, wanted: Any, numbers: int) -> None:
    """Give ``unet`` adapters of at most ``numbers`` parameters; with them it comes near ``wanted``.

    Both have the same layout. Linear and convolution weights take part; biases and norms stay the
    teacher's, as in any LoRA. Every layer's alpha is its rank, so the adapters add up ``B A``.
    """
    ours, theirs = _weights(unet), _weights(wanted)
    parts = {
        name: torch.linalg.svd((theirs[name] - weight).flatten(1), full_matrices=False)
        for name, weight in ours.items()
    }
    ranks = _ranks({name: part.S for name, part in parts.items()}, ours, numbers)
    kept = list(ranks)
    unet.add_adapter(
        LoraConfig(r=1, lora_alpha=1, target_modules=kept, rank_pattern=ranks, alpha_pattern=ranks)
    )
    modules = dict(unet.named_modules())
    for name, rank in ranks.items():
        u, s, vh = parts[name]
        root = s[:rank].sqrt()
        down, up = root[:, None] * vh[:rank], u[:, :rank] * root
        for side, matrix in ((modules[name].lora_A, down), (modules[name].lora_B, up)):
            weight = side["default"].weight
            weight.data.copy_(matrix.view_as(weight))


def write_adapters(unet: Any, folder: Path) -> Any:
    """Write the adapters, float16, to ``LOW_RANK`` in ``folder``; returns the UNet they make.

    Names are peft's, without the adapter's own: ``LAYER.lora_A.weight``, ``LAYER.lora_B.weight``.
    What is returned is what the file makes of the teacher, rounding and all.
    """
    tensors = {
        name.replace(".default.", "."): parameter.detach().half().cpu().contiguous()
        for name, parameter in unet.named_parameters()
        if ".lora_" in name
    }
    write_atomically(folder / LOW_RANK, save(tensors))
    whole = copy.deepcopy(unet)
    whole.unload_lora()
    add_low_rank(whole, tensors)
    return whole


def _weights(unet: nn.Module) -> dict[str, Tensor]:
    """Weights of linear layers (out, in) and convolutions (out, in, h, w), float32."""
    kinds = (nn.Linear, nn.Conv2d)
    return {
        name: module.weight.detach().float()
        for name, module in unet.named_modules()
        if isinstance(module, kinds)
    }


def _ranks(values: dict[str, Tensor], weights: dict[str, Tensor], numbers: int) -> dict[str, int]:
    """How many singular values of each layer are kept: those that explain most a number.

    A rank of a layer costs a row and a column of it.
    """
    each = {name: sum(weight.flatten(1).shape) for name, weight in weights.items()}
    offers = [
        (float(value) ** 2 / each[name], name) for name in values for value in values[name].tolist()
    ]
    ranks: dict[str, int] = {}
    for gain, name in sorted(offers, key=lambda offer: -offer[0]):
        if gain > 0 and numbers >= each[name]:
            numbers -= each[name]
            ranks[name] = ranks.get(name, 0) + 1
    return ranks
