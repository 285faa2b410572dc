"""CUDA graphs: a UNet is a thousand launches, a graph of it is one.

One graph per function and shape, the least recently used dropped beyond a limit. What cannot be
captured runs as it is, and says so once.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LIMIT = 8  # graphs kept; each holds the activations of its shape
_WARM_UPS = 3  # runs before capture, for libraries that choose or allocate on first calls


class Captured:
    """A function captured at one shape of its inputs."""

    def __init__(self, function: Callable, inputs: list[Tensor], call: Callable, pool: Any) -> None:
        self.function = function  # kept alive, so that its id stays its own
        self.inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                call(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.output = call(self.inputs)

    def __call__(self, inputs: list[Tensor]) -> Any:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self.output)


class Graphs:
    """Calls functions through graphs: ``graphs(function, *tensors)``.

    Args:
        limit: graphs kept at once.
        capture: what makes a graph; for tests.
    """

    def __init__(self, limit: int = LIMIT, capture: Callable[..., Any] = Captured) -> None:
        self.limit, self.capture = limit, capture
        self._graphs: OrderedDict[tuple, Any] = OrderedDict()
        self._pool: Any = None
        self._gave_up: set[tuple] = set()

    def __call__(self, function: Callable, *arguments: Any, state: tuple = ()) -> Any:
        """``function(*arguments)``, where ``state`` stands for all else that it depends on."""
        leaves, form = pytree.tree_flatten(arguments)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[i] for i in places]
        rest = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        shapes = tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
        name = id(getattr(function, "__self__", function))
        key = (name, getattr(function, "__name__", ""), str(form), rest, shapes, state)

        def call(inputs: list[Tensor]) -> Any:
            filled = list(leaves)
            for i, x in zip(places, inputs, strict=True):
                filled[i] = x
            return function(*pytree.tree_unflatten(filled, form))

        if key in self._gave_up:
            return call(tensors)
        graph = self._graphs.pop(key, None)
        if graph is None:
            graph = self._made(function, tensors, call)
            if graph is None:
                self._gave_up.add(key)
                return call(tensors)
        self._graphs[key] = graph
        while len(self._graphs) > self.limit:
            self._graphs.popitem(last=False)
        return graph(tensors)

    def __len__(self) -> int:
        return len(self._graphs)

    def clear(self) -> None:
        self._graphs.clear()

    def _made(self, function: Callable, tensors: list[Tensor], call: Callable) -> Any:
        if self._pool is None and torch.cuda.is_available():
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return self.capture(function, tensors, call, self._pool)
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            self.clear()  # room, if that was it
            warnings.warn(f"no CUDA graph at this size ({first}): it runs without", stacklevel=4)
            return None
