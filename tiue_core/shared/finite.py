"""What was painted must be a picture: finite and not one value. Broken numbers paint black, in
silence, so they are looked for once, where they are few: in the latents, and in what the decoder
makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TiueError


def sound(*rows: Tensor | None) -> bool:
    """Whether every row of these (B, ...) is finite and holds more than one value."""
    for tensor in rows:
        if tensor is not None and tensor.numel():
            low, high = _ends(tensor.detach().flatten(1))
            if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
                return False
    return True


def _ends(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of every row; NaN carries through both."""
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        row = flat.numpy()  # by one thread, see ``pipelines.vae.unit``
        return torch.from_numpy(row.min(1)), torch.from_numpy(row.max(1))
    return flat.amin(1), flat.amax(1)


def check_picture(pipe: Any, *rows: Tensor | None) -> None:
    """Raise TiueError unless ``rows``, what a pipeline painted, are a picture; it says why not."""
    if not sound(*rows):
        raise TiueError(
            f"what came out is not a picture ({culprit(pipe)}): choose another student or LoRA"
        )


def check_latents(latents: Tensor, unet: nn.Module | None = None) -> None:
    """The same where there is no pipeline: latents (B, ...) must be finite, whatever they show."""
    if not bool(torch.isfinite(latents).all()):
        name = broken_weight(unet) if unet is not None else None
        why = f"the UNet's {name} holds NaN or infinity" if name else "NaN or infinity"
        raise TiueError(
            f"what came out is not a picture ({why}): choose another student, LoRA or strength"
        )


def culprit(pipe: Any) -> str:
    """The first thing about a pipeline that is not finite, as far as can be seen."""
    parts = {name: part for name, part in _components(pipe).items() if isinstance(part, nn.Module)}
    for name, part in parts.items():
        found = broken_weight(part)
        if found:
            return f"{name}: {found} holds NaN or infinity"
        for layer, module in part.named_modules():
            for adapter, scale in dict(getattr(module, "scaling", None) or {}).items():
                if not math.isfinite(float(torch.tensor(scale, dtype=torch.float32))):
                    return f"{name}: LoRA {adapter} has strength {scale:g} at {layer}"
    config = getattr(parts.get("vae"), "config", None)
    scaling = getattr(config, "scaling_factor", 1.0)
    if scaling is None or not math.isfinite(scaling) or scaling == 0:
        return f"the VAE's scaling_factor is {scaling}"
    betas = getattr(getattr(pipe, "scheduler", None), "betas", None)
    if isinstance(betas, Tensor) and not torch.isfinite(betas).all():
        return "the scheduler's betas hold NaN or infinity"
    dtype = next((p.dtype for p in getattr(parts.get("unet"), "parameters", list)()), None)
    if dtype in (torch.float16, torch.bfloat16):
        return f"NaN, infinity or a single value; {dtype} may be too small for it, try float32"
    return "NaN, infinity or a single value; its weights may be broken, or a LoRA too strong"


def broken_weight(model: nn.Module) -> str | None:
    """The name of a model's first weight that is not finite."""
    for name, weight in model.named_parameters():
        if not weight.is_meta and not bool(torch.isfinite(weight.detach().float()).all()):
            return name
    return None


def _components(pipe: Any) -> dict[str, Any]:
    own = getattr(pipe, "pipe", pipe)  # a system's pipeline is diffusers' own
    return dict(own.components)
