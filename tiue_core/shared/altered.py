"""What makes a model compute something else than its class, its config and its weights say."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import nn

from .layers import is_patched, padding_of, walk
from .parts import PROCESSORS

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "tiue_core")


def altered(model: nn.Module) -> str | None:
    """What hangs on a model that a mark of its weights does not show, or nothing.

    Hooks, a forward that was replaced, FreeU, edges that wrap around, an attention processor of
    another kind, and a class that was exchanged for a stranger's, as tomesd does: a graph of the
    same weights leaves all of it out.
    """
    for module in walk(model):
        kind = type(module)
        if is_patched(module):
            return f"a hook on {kind.__name__}"
        if kind not in _KNOWN and not _known(kind):
            return f"a {kind.__name__} that is not its library's"
        if kind is Attention and type(module.processor) not in PROCESSORS:
            return f"a {type(module.processor).__name__}"
        if padding_of(module) != "zeros":
            return f"{padding_of(module)} padding"
        if vars(module).get("b1"):
            return "FreeU"
    return None


_KNOWN: set[type[Any]] = set()  # a lookup for each module instead of a comparison of names


def _known(kind: type[Any]) -> bool:
    known = kind.__module__.partition(".")[0] in LIBRARIES
    if known:
        _KNOWN.add(kind)
    return known
