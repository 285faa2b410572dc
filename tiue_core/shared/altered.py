"""What makes a model compute something else than its class, its config and its weights say."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .layers import drops, is_patched, known, methods_of, padding_of, replaced, stranger, walk
from .parts import understood

#: Attributes that change no picture where ``altered`` finds nothing.
IDLE = {"training", "processor", "forward", "_conv_forward", "_compiled_call_impl"}
IDLE |= {"gradient_checkpointing", "use_slicing", "_chunk_size", "_chunk_dim", "name_or_path"}
IDLE |= {"peft_config", "_hf_peft_config_loaded", "_is_hf_initialized"}


def altered(model: nn.Module) -> str | None:
    """What hangs on a model that a mark of its weights does not show, or nothing.

    Hooks, a forward that was replaced on a module or on its class, FreeU, edges that wrap around,
    dropout or tiles at work, an attention processor of another kind, and a class that was exchanged
    for a stranger's, as tomesd does: a graph of the same weights leaves all of it out.
    """
    if stranger(F.scaled_dot_product_attention):
        return "an attention that is not torch's"
    kinds: dict[type[Any], bool] = {}
    for module in walk(model):
        kind = type(module)
        if is_patched(module):
            return f"a hook on {kind.__name__}"
        if kind not in kinds:
            kinds[kind] = known(kind)
        if not kinds[kind]:
            return f"a {kind.__name__} that is not its library's"
        if kind is Attention and not understood(module.processor):
            return f"a {type(module.processor).__name__}"
        if padding_of(module) != "zeros":
            return f"{padding_of(module)} padding"
        if drops(module):
            return f"a {kind.__name__} at work"
        if vars(module).get("b1"):
            return "FreeU"
        if vars(module).get("use_tiling"):
            return "a picture in tiles"
    return None


def unheard(unet: nn.Module) -> str | None:
    """What hangs on a UNet as a whole, or nothing. Two halves are called, never the whole: whoever
    acts around its forward or in its place, as DeepCache does, is not asked. tomesd, and accelerate
    and diffusers where they offload, are (``core.unet.unet_call_context``).
    """
    hooks = (*unet._forward_hooks.values(), *unet._forward_pre_hooks.values())
    if any(stranger(hook, "tomesd") for hook in hooks):
        return "a hook"
    offloaded = {"_hf_hook", "_diffusers_hook"} & vars(unet).keys()
    own = replaced(unet) and not offloaded
    return "another forward" if own or any(map(stranger, methods_of(type(unet)))) else None


def settings(model: nn.Module) -> list[str]:
    """What was set on a model's modules since its class made them of its config, in words, sorted.

    Such as a normalization's epsilon, a layer's dilation, another activation, a layer left out, and
    LoRAs with their strengths.
    """
    with torch.device("meta"):
        usual = _said(_made(model))
    return sorted(_said(model) ^ usual)


def _made(model: Any) -> Any:
    """Another of its class and config."""
    if isinstance(model, ConfigMixin):
        taken = signature(type(model).__init__).parameters
        return type(model)(**{key: value for key, value in model.config.items() if key in taken})
    return type(model)(deepcopy(model.config))


def _said(model: nn.Module) -> set[str]:
    """A line for each class and each simple attribute of its modules."""
    lines = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # its base layer stands in its place
            lora = module.active_adapters, module.merged_adapters, module.disable_adapters
            lines.add(f"{name} {lora} {getattr(module, 'scaling', None)}")
        elif not any(part.startswith("lora_") for part in name.split(".")):
            name = name.replace(".base_layer", "")
            lines.add(f"{name} {type(module).__qualname__}")
            own = {key: value for key, value in vars(module).items() if key not in IDLE}
            lines |= {f"{name}.{key} {value}" for key, value in own.items() if _plain(value)}
    return lines


def _plain(value: Any) -> bool:
    many = type(value) in (tuple, list)
    return all(isinstance(one, str | int | float) for one in (value if many else [value]))
