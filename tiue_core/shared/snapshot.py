"""Is a model what it was when it was last looked at? Cheap enough to ask before every picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import hooks_of_all, methods_of

_LIVE = ("_parameters", "_buffers")
_NOTHING = object()


class Snapshot:
    """Some models' modules and all that is set on them: sub-modules, numbers, configs, hooks,
    replaced methods, LoRAs and their strengths, and what their classes do.

    Args:
        without: modules of theirs that are left out, with all in them.
    """

    def __init__(self, *models: nn.Module, without: Collection[nn.Module] = ()) -> None:
        left_out = {id(part) for module in without for part in module.modules()}
        modules = {
            id(module): module
            for model in models
            for module in model.modules()
            if id(module) not in left_out
        }
        configs = [vars(module).get("config") for module in modules.values()]
        things = modules | {id(one): one for one in configs if hasattr(one, "__dict__")}
        self._seen = [(one, type(one), dict(vars(one))) for one in things.values()]
        self._held = [
            (value, value.copy(), name, kind)
            for _, kind, own in self._seen
            for name, value in own.items()
            if type(value) in (dict, list, set, OrderedDict) and name not in _LIVE
        ]
        self._empty = [value for value, *_ in self._held if not value]
        self._full = [held[:2] for held in self._held if held[0]]
        # Which tensors they have is asked by identity; what these hold is for ``layers.Bits``.
        self._own = [(vars(m), name, vars(m)[name]) for m in modules.values() for name in _LIVE]
        self._none = [own for *_, own in self._own if not own]
        self._some = [(own, [*own.values()]) for *_, own in self._own if own]
        self._tensors = [x for _, known in self._some for x in known if x is not None]
        kinds: set[type] = {type(m) for m in modules.values()}
        kinds |= {type(vars(m).get("processor")) for m in modules.values()}
        self._classes = [(kind, methods_of(kind)) for kind in kinds]
        self._everywhere = _everywhere()

    def same(self) -> bool:
        """Whether nothing has changed. A hundred modules take a tenth of a millisecond."""
        try:
            return (
                all(type(one) is kind and vars(one) == own for one, kind, own in self._seen)
                and not any(self._empty)
                and all(value == before for value, before in self._full)
                and all(methods_of(kind) == methods for kind, methods in self._classes)
                and _everywhere() == self._everywhere
            )
        except (RuntimeError, TypeError, ValueError):  # tensors that are others
            return False

    def tensors(self) -> list[Tensor]:
        """What these modules' weights and buffers are now."""
        if (
            all(own is module[name] for module, name, own in self._own)
            and not any(self._none)
            and all([*map(id, own.values())] == [*map(id, known)] for own, known in self._some)
        ):
            return self._tensors
        return [x for module, name, _ in self._own for x in module[name].values() if x is not None]

    def changes(self) -> Iterator[tuple[str, str]]:
        """What has: the name of an attribute, and the class of what has it."""
        for one, kind, own in self._seen:
            if type(one) is not kind:
                yield "class", kind.__name__
            now = vars(one)
            for name in now.keys() | own.keys():
                if not _alike(now.get(name, _NOTHING), own.get(name, _NOTHING)):
                    yield name, kind.__name__
        for value, before, name, kind in self._held:
            if not _alike(value, before):
                yield name, kind.__name__
        for kind, methods in self._classes:
            if methods_of(kind) != methods:
                yield "methods", kind.__name__
        if _everywhere() != self._everywhere:
            yield "hooks", "every module"


def _everywhere() -> list[Any]:
    """What is set for a whole process; attention is exchanged by those who bring a faster one."""
    return [F.scaled_dot_product_attention, *hooks_of_all()]


def _alike(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (RuntimeError, TypeError, ValueError):
        return False
