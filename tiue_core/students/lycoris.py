"""LyCORIS' kinds of LoRA, and kohya's DoRA: merged into the weights, which are put back on unload.

Per layer with weight W (out, in, ...), by the names of its tensors:

    LoRA, LoCon   dW = up down              (of a Tucker core, if it has `lora_mid`)
    LoHa          dW = (w1_a w1_b) * (w2_a w2_b)           arXiv:2108.06098
    LoKr          dW = w1 (x) w2, each perhaps a product   arXiv:2212.10650
    full          dW = diff, db = diff_b;  norms: w_norm, b_norm
    IA3           dW = W * weight, by input or output channel   arXiv:2205.05638
    DoRA          W + dW, scaled to `dora_scale` in norm        arXiv:2402.09353

times alpha / rank. diffusers and peft know the first only, and leave the rest out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TiueError
from ..io.messages import first_line
from .original import unet_layers

_PLAIN = {"lora_up.weight", "lora_down.weight", "alpha"}
_OTHER = {
    *("lora_mid.weight", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "weight", "on_input"),
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
}
_WHOLE = [  # tensors without which a layer's are no LoRA, of each kind
    {"lora_up.weight", "lora_down.weight"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    *({one, two} for one in ("lokr_w1", "lokr_w1_a") for two in ("lokr_w2", "lokr_w2_a")),
    *({"diff"}, {"w_norm"}, {"weight", "on_input"}),
]
_PREFIXES = {  # of layers, in the names that trainers give them
    "lora_unet_": "unet",
    "lycoris_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
Groups = dict[str, dict[str, Tensor]]


def is_lycoris(names: Iterable[str]) -> bool:
    """Whether a file in kohya's naming holds anything but plain LoRA, or has LyCORIS' own names."""
    apart = [_apart(name) for name in names]
    tails = {tail for layer, tail in apart if layer.startswith(tuple(_PREFIXES))}
    return bool(tails - _PLAIN) or any(layer.startswith("lycoris_") for layer, _ in apart)


def merge(pipe: Any, tensors: Mapping[str, Tensor], strength: float, path: Path) -> None:
    """Merge a file into the weights of a pipeline; ``restore`` undoes it.

    Raises:
        TiueError: it is for another model, or of a kind that is not known. Nothing has changed.
    """
    groups: Groups = {}
    for key, tensor in tensors.items():
        groups.setdefault(_apart(key)[0], {})[_apart(key)[1]] = tensor
    layers = _layers(pipe)
    changed: list[tuple[Tensor, Tensor]] = []
    for name, group in groups.items():
        unknown = group.keys() - _PLAIN - _OTHER
        if unknown:
            raise TiueError(
                f"{path} is a kind of LoRA that is not known ({name}: {min(unknown)}): use a LoRA, "
                "LoHa, LoKr, IA3 or full one"
            )
        kinds = [needed for needed in _WHOLE if needed <= group.keys()]
        if len(kinds) > 1:
            raise TiueError(
                f"{path} is a kind of LoRA that is not known ({name} has both "
                f"{min(kinds[0])} and {min(kinds[1])}): use a file of one kind"
            )
        if not kinds:
            raise TiueError(
                f"{path} is not a LoRA that can be read ({name} has only "
                f"{', '.join(sorted(group))}): use one in kohya's or diffusers' naming"
            )
        if name not in layers:
            raise TiueError(
                f"{path} is a LoRA for another model (this one has no {name}): use one trained "
                "for this student's base model"
            )
        layer: Any = layers[name]
        if layer.weight.is_meta:
            raise TiueError(f"{path} is merged into weights that are offloaded: load it before")
        try:
            changed += _changed(layer, group, strength)
        except (KeyError, RuntimeError, IndexError) as error:
            here = tuple(layer.weight.shape)
            raise TiueError(
                f"{path} is a LoRA for another model, or of a kind that is not known ({name}, "
                f"{here} here, {first_line(error, 120)}): use one trained for "
                "this student's base model"
            ) from error
    for tensor, value in changed:
        pipe._merged.append((tensor, tensor.detach().to("cpu", copy=True)))
        tensor.data.copy_(value)


def restore(pipe: Any, kept: int = 0) -> None:
    """Put back what ``merge`` changed, but for its first ``kept`` tensors."""
    while len(getattr(pipe, "_merged", [])) > kept:
        tensor, before = pipe._merged.pop()
        tensor.data.copy_(before)


def _changed(layer: Any, group: dict[str, Tensor], strength: float) -> Iterator[tuple]:
    """The layer's tensors with what they become."""
    weight = layer.weight
    base, group = weight.detach().float(), {k: v.float() for k, v in group.items()}
    device = base.device
    group = {k: v.to(device) for k, v in group.items()}
    added = _added(base, group)
    if "dora_scale" in group:
        merged = base + added
        magnitude = group["dora_scale"].view(_column(group["dora_scale"], base.ndim))
        over = [d for d in range(base.ndim) if magnitude.shape[d] == 1]
        norm = torch.linalg.vector_norm(merged, dim=over, keepdim=True)
        added = merged * (magnitude / (norm + torch.finfo(torch.float32).eps)) - base
    yield weight, base + strength * added
    for name in ("diff_b", "b_norm"):
        if name in group:
            if layer.bias is None:
                raise KeyError(f"{name}, and it has no bias")
            yield layer.bias, layer.bias.detach().float() + strength * group[name].view(-1)


def _added(base: Tensor, group: dict[str, Tensor]) -> Tensor:
    """dW of a layer, in the shape of its weight W."""
    if "lora_up.weight" in group:
        up, down = group["lora_up.weight"], group["lora_down.weight"]
        made, rank = _product(up, down, group.get("lora_mid.weight")), len(down)
    elif "hada_w1_a" in group:
        one, two = (
            _tucker(group[f"hada_w{n}_a"], group[f"hada_w{n}_b"], group.get(f"hada_t{n}"))
            for n in (1, 2)
        )
        made, rank = one * two, len(group["hada_w1_b"])
    elif group.keys() & {"lokr_w1", "lokr_w1_a"}:
        ranks = [len(group[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in group]
        one, two = (_factor(group, n) for n in (1, 2))
        if two.ndim == 4 and one.ndim == 2:
            one = one[:, :, None, None]
        made, rank = torch.kron(one, two.contiguous()), ranks[-1] if ranks else 0
    elif "weight" in group:
        by, column = group["weight"].flatten(), [1] * base.ndim
        column[1 if group["on_input"].item() else 0] = -1
        return base * by.view(column)
    else:
        return group["diff" if "diff" in group else "w_norm"].view(base.shape)
    alpha = float(group["alpha"]) if "alpha" in group else 0.0
    scale = alpha / rank if alpha and rank else 1.0
    return made.reshape(base.shape) * scale


def _product(up: Tensor, down: Tensor, mid: Tensor | None) -> Tensor:
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("ijkl,pi,jr->prkl", mid, up.flatten(1), down.flatten(1))


def _tucker(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    return a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b)


def _factor(group: dict[str, Tensor], n: int) -> Tensor:
    """One side of a Kronecker product."""
    if f"lokr_w{n}" in group:
        return group[f"lokr_w{n}"]
    a, b = group[f"lokr_w{n}_a"], group[f"lokr_w{n}_b"]
    core = group.get(f"lokr_t{n}")
    return a @ b.flatten(1) if core is None and b.ndim == 2 else _of_conv(a, b, core)


def _of_conv(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is not None:
        return torch.einsum("ijkl,ip,jr->prkl", core, a, b)
    return torch.einsum("pi,irkl->prkl", a, b)


def _column(scale: Tensor, dims: int) -> list[int]:
    """The magnitude's shape: along the outputs (O, 1, ...) or the inputs (1, I, ...)."""
    shape = list(scale.shape) + [1] * (dims - scale.ndim)
    return shape[:dims]


def _apart(name: str) -> tuple[str, str]:
    layer, _, tail = name.partition(".")
    return layer, tail


def _layers(pipe: Any) -> dict[str, nn.Module]:
    """Layers that have a weight, by every name that a trainer may give them."""
    found: dict[str, nn.Module] = {}
    for prefix, part in _PREFIXES.items():
        for name, module in getattr(pipe, part, nn.Module()).named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                plain = name.removesuffix(".base_layer").replace(".", "_")
                found[prefix + plain] = module
                if part != "unet":
                    found[f"{prefix}text_model_{plain}"] = module
    for original, name in unet_layers(pipe.unet).items():  # as kohya's scripts have SDXL's
        plain = "lora_unet_" + name.replace(".", "_")
        if plain in found:
            found.setdefault("lora_unet_" + original.replace(".", "_"), found[plain])
    return found
