"""What a layer computes, read from outside: its effective weight, and a mark of its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from xxhash import xxh3_64_intdigest

from .exact import NotUnderstoodError

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "tiue_core")  #: whose code is known
_PLAIN = (nn.Conv2d, nn.Linear)
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}  # by bytes
_ADAPTED = (lora.Conv2d, lora.Linear)


class Transparent:
    """Base of what may stand in for a module's forward because it computes the same."""

    enabled = True  # of all of them; see `as_written`


@contextmanager
def as_written() -> Iterator[None]:
    """Within, every stand-in steps aside and layers run as their authors wrote them."""
    Transparent.enabled = False
    try:
        yield
    finally:
        Transparent.enabled = True


class Conv(nn.Module):
    """A convolution with a weight of its own, derived from others'. In the layout of ``like``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, like: Tensor) -> None:
        super().__init__()
        last = like.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        self.weight = weight.detach().contiguous(memory_format=layout)
        self.bias = None if bias is None else bias.detach()
        self.padding = (padding, padding)
        self.stride = self.dilation = (1, 1)
        self.groups, self.padding_mode = 1, "zeros"

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


def untouched(module: nn.Module, kind: type | tuple[type, ...]) -> None:
    """Raise unless ``module`` is of just this class and nothing hangs on it or on its calls."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(module) not in kinds:
        raise NotUnderstoodError(f"a {type(module).__name__} in the place of {kinds[0].__name__}")
    if is_patched(module):
        raise NotUnderstoodError(f"a hook on {type(module).__name__}")
    if not known(type(module)):
        raise NotUnderstoodError(f"a {type(module).__name__} that is not its library's")
    if padding_of(module) != "zeros":
        raise NotUnderstoodError(f"{padding_of(module)} padding")


def known(kind: type[Any]) -> bool:
    """Whether a class and its methods are a library's."""
    return not any(map(stranger, (kind, *methods_of(kind))))


def stranger(one: Any, *friends: str) -> bool:
    """Whether a class or a function is none of a known library's, nor of ``friends``."""
    home = (getattr(one, "__module__", None) or "").partition(".")[0]
    return one is not None and home not in (*LIBRARIES, *friends)


def methods_of(kind: type[Any]) -> list[Any]:
    """Those of a class that people replace."""
    return [getattr(kind, name, None) for name in ("forward", "__call__", "_conv_forward")]


def padding_of(module: nn.Module) -> str:
    """What a convolution sees beyond the edge; "circular" is how people make pictures that tile."""
    return vars(module).get("padding_mode", "zeros")


def weight_of(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a convolution or linear layer applies, active LoRAs included.

    Raises:
        NotUnderstoodError: the layer is no plain convolution, linear layer or LoRA around one, or
            the convolution steps, spreads or pads in another way than Stable Diffusion's.
    """
    untouched(layer, _PLAIN + _ADAPTED)
    base = layer.get_base_layer() if isinstance(layer, _ADAPTED) else layer
    untouched(base, _PLAIN)
    if isinstance(base, nn.Conv2d) and not _keeps_size(base):
        raise NotUnderstoodError("a convolution unlike Stable Diffusion's")
    if base is layer:
        return layer.weight, layer.bias
    weight = base.weight
    for name in _active(layer):
        if layer.lora_variant or any(layer.lora_bias.values()):
            raise NotUnderstoodError("a LoRA variant")
        if drops(layer.lora_dropout[name]):
            raise NotUnderstoodError("dropout")
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias


def _keeps_size(conv: nn.Conv2d) -> bool:
    same = tuple(side // 2 for side in conv.kernel_size)
    return (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1) and conv.padding == same


def drops(layer: Any) -> bool:
    """Whether it is a dropout that is at work."""
    return layer.training and getattr(layer, "p", 0) > 0


def state_of(layers: Iterable[Any]) -> tuple:
    """Changes whenever a tensor that ``weight_of`` reads of these layers is another, lies elsewhere
    or was written to. What else is set on them is for ``Snapshot``."""
    tensors = [one for layer in layers for one in _read(layer) if one is not None]
    places = ((one.data_ptr(), one.dtype, one.stride()) for one in tensors)
    return (*places, fingerprint(tensors))


def _read(layer: Any) -> Iterable[Tensor | None]:
    return layer.parameters() if isinstance(layer, _ADAPTED) else layer._parameters.values()


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A mark of all bits of some tensors: the one rule for whether a weight has changed.

    ``tensor.data`` can be written to, as peft does when it fuses a LoRA, and a version, an address
    or a sample of elements stays as it was. So all bits are read, at the speed of memory: on a CPU
    hashed (XXH3, 8 GB/s on one core), elsewhere added up row by row, as integers.
    """
    return Bits().mark(tensors)


class Bits:
    """``fingerprint`` for who asks often: remembers where tensors lie, never what they hold."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._places: list[list[Any]] = []
        self._views: list[memoryview | None] = []
        self._dense = True

    def mark(self, tensors: Iterable[Tensor]) -> int:
        tensors = [*tensors]
        places = [[*map(asked, tensors)] for asked in _PLACE]
        if places != self._places:  # the tensors are held, so that an id stays one's own
            self._tensors, self._places = tensors, places
            self._views = [_view(tensor) for tensor in tensors]
            self._dense = None not in self._views
        if not self._dense:
            return self._scattered()
        return hash((*map(xxh3_64_intdigest, self._views),))  # type: ignore[arg-type]

    def _scattered(self) -> int:
        """The same where some of the tensors must be gathered to be read."""
        seen, away = [], []
        for tensor, view in zip(self._tensors, self._views, strict=True):
            if view is not None:
                seen.append(xxh3_64_intdigest(view))
            elif tensor.device.type == "cpu":
                seen.append(xxh3_64_intdigest(_bytes(_flat(tensor))))
            elif tensor.numel() and not tensor.is_meta:
                away.append(_rows(tensor))
        if away:
            seen.append(xxh3_64_intdigest(torch.cat(away).cpu().numpy().data))
        return hash(tuple(seen))


#: where a tensor lies, each asked of all at once
_PLACE = (id, Tensor.data_ptr, attrgetter("shape"), Tensor.stride, attrgetter("dtype"))


def _view(tensor: Tensor) -> memoryview | None:
    """A CPU tensor's bits as they lie, unless it lies scattered."""
    if tensor.device.type != "cpu":
        return None
    flat = _flat(tensor)
    return _bytes(flat) if flat.data_ptr() == tensor.data_ptr() else None


def _bytes(flat: Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _flat(tensor: Tensor) -> Tensor:
    """All elements of a tensor in a row, as they lie in memory if they lie densely."""
    tensor = tensor.detach()
    dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.as_strided((tensor.numel(),), (1,)) if dense else tensor.flatten()


def _rows(tensor: Tensor) -> Tensor:
    """Sums of the bits of every row, as integers of the widest word that a row is made of."""
    flat = _flat(tensor)
    height = max(len(tensor), 1) if tensor.ndim > 1 else 1
    word = next(w for w in _WORDS if flat.numel() * flat.element_size() % (w * height) == 0)
    flat = flat.clone() if flat.data_ptr() % word else flat
    return flat.view(_WORDS[word]).view(height, -1).sum(1, dtype=torch.int64)


def walk(model: nn.Module) -> Iterator[nn.Module]:
    """Its modules, in no order and some perhaps twice: ``modules()`` in a fifth of the time."""
    waiting = [model]
    while waiting:
        module = waiting.pop()
        yield module
        waiting += [child for child in module._modules.values() if child is not None]


def is_patched(module: nn.Module) -> bool:
    """Whether anything of a user's hangs on a module's call, or stands in for its forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks or hooks_of_all()
    return bool(replaced(module) or hooks)


def hooks_of_all() -> list[Any]:
    """What hangs on the call of every module there is; torch's own only count and measure."""
    found = (
        *everywhere._global_forward_hooks.values(),
        *everywhere._global_forward_pre_hooks.values(),
    )
    return [hook for hook in found if not str(getattr(hook, "__module__", "")).startswith("torch.")]


def replaced(module: nn.Module) -> bool:
    """Whether a user's own stands in for its forward, or for what a convolution's calls."""
    own = vars(module)
    return "_conv_forward" in own or not isinstance(own.get("forward", _NOTHING), Transparent)


_NOTHING = Transparent()


def _active(layer: Any) -> list[str]:
    """LoRAs that the layer adds on each call (merged ones are in its weight already)."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]
