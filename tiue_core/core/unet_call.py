"""What calling a UNet does around its forward, for those who run its blocks themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.utils import scale_lora_layers, unscale_lora_layers


@contextmanager
def unet_call_context(
    unet: Any, conditions: dict[str, Any], size: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Do what calling the UNet itself would do around its forward.

    Offloading hooks on the whole UNet bring it to its device, tomesd's tells its blocks the size,
    and ``scale`` in ``cross_attention_kwargs`` sets the LoRA strength. Yields the conditions
    without ``scale``; ``size`` (H, W) is the latents'.
    """
    if getattr(unet, "_tome_info", None) is not None:
        unet._tome_info["size"] = (size[0], size[1])
    hook = getattr(unet, "_hf_hook", None)  # accelerate
    if hook is not None:
        hook.pre_forward(unet)
    registry = getattr(unet, "_diffusers_hook", None)  # diffusers' group offloading
    groups = [] if registry is None else list(registry.hooks.values())
    for group in groups:
        group.pre_forward(unet)

    attention = dict(conditions.get("cross_attention_kwargs") or {})
    strength = attention.pop("scale", 1.0)
    scale_lora_layers(unet, strength)
    try:
        yield {**conditions, "cross_attention_kwargs": attention or None}
    finally:
        unscale_lora_layers(unet, strength)
        for group in groups:
            group.post_forward(unet, None)
