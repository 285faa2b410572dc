"""What makes a model compute something else than its class, its config and its weights say."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .layers import is_patched, padding_of, walk
from .parts import PROCESSORS

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "tiue_core")


def altered(model: nn.Module) -> str | None:
    """What hangs on a model that a mark of its weights does not show, or nothing.

    Hooks, a forward that was replaced, FreeU, edges that wrap around, an attention processor of
    another kind, and a class that was exchanged for a stranger's, as tomesd does: a graph of the
    same weights leaves all of it out.
    """
    return looked_through(model)[0]


def looked_through(model: nn.Module) -> tuple[str | None, list[Tensor]]:
    """``altered`` and the weights, from one walk: this is asked before every picture."""
    tensors: list[Tensor] = []
    for module in walk(model):
        kind, own = type(module), module.__dict__
        why = _altered(module, kind, own)
        if why is not None:
            return why, []
        tensors += [one for one in own["_parameters"].values() if one is not None]
    return None, tensors


def _altered(module: Any, kind: type[Any], own: dict[str, Any]) -> str | None:
    if is_patched(module):
        return f"a hook on {kind.__name__}"
    if kind not in _KNOWN and not _known(kind):
        return f"a {kind.__name__} that is not its library's"
    if kind is Attention and type(module.processor) not in PROCESSORS:
        return f"a {type(module.processor).__name__}"
    if own.get("padding_mode", "zeros") != "zeros":
        return f"{padding_of(module)} padding"
    return "FreeU" if own.get("b1") else None


_KNOWN: set[type[Any]] = set()  # a lookup for each module instead of a comparison of names


def _known(kind: type[Any]) -> bool:
    known = kind.__module__.partition(".")[0] in LIBRARIES
    if known:
        _KNOWN.add(kind)
    return known
