"""A pipeline's models in another engine: the three calls stay, graphs answer them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.packed import PackedUNet, pooled_width
from ..core.unet import Features, SplitUNet
from ..export.runtime import GraphSet
from ..shared.altered import IDLE, altered
from ..shared.layers import Bits
from ..shared.snapshot import Snapshot


class GraphUNet(SplitUNet):
    """A ``SplitUNet`` whose halves run as graphs.

    What graphs do not hold (single predictions, other timesteps or weights, conditions, gradients)
    PyTorch computes; ``usable`` says whether they still stand for the weights.
    """

    def __init__(self, unet: Any, graphs: GraphSet, usable: Any, **options: Any) -> None:
        super().__init__(unet, **options)
        self.graphs, self.usable = graphs, usable
        about = graphs.about
        self.timesteps = list(about["timesteps"])
        self.weights = torch.tensor(about["weights"], dtype=torch.float64)

    def encode(
        self, noise: Tensor, timestep: Tensor | int, prompt_embeds: Tensor, **conditions: Any
    ) -> Features:
        """As ``SplitUNet.encode``."""
        one = not isinstance(timestep, Tensor) or timestep.ndim == 0
        first = one and int(timestep) == self.timesteps[0]
        if not first or not self._fit(noise, prompt_embeds, conditions):
            return super().encode(noise, timestep, prompt_embeds, **conditions)
        mid, *skips = map(torch.from_numpy, self.graphs.encode(array(noise), array(prompt_embeds)))
        return Features(mid=mid, skips=tuple(skips), size=(noise.shape[-2], noise.shape[-1]))

    def decode(
        self,
        features: Features,
        timesteps: Tensor | Sequence[int],
        prompt_embeds: Tensor,
        *,
        chunk: int | None = None,
        weights: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """As ``SplitUNet.decode``."""
        own = (
            weights is not None
            and [int(t) for t in timesteps] == self.timesteps
            and torch.allclose(weights.double().cpu(), self.weights, rtol=1e-6, atol=0)
        )
        if not own or not self._fit(features.mid, prompt_embeds, conditions):
            options: dict[str, Any] = {"chunk": chunk, "weights": weights, **conditions}
            return super().decode(features, timesteps, prompt_embeds, **options)
        channels = self.unet.config.in_channels
        nothing = torch.zeros(len(features.mid), channels, *features.size)  # leaves their sum
        given = [array(each) for each in (features.mid, *features.skips)]
        return torch.from_numpy(self.graphs.decode(given, nothing.numpy(), array(prompt_embeds)))

    def _fit(self, like: Tensor, prompt_embeds: Tensor, conditions: dict[str, Any]) -> bool:
        given = any(value is not None for value in conditions.values())
        rows = prompt_embeds.ndim == 3 and len(prompt_embeds) == len(like)
        return not given and rows and not torch.is_grad_enabled() and self.usable()


class GraphPackedUNet(GraphUNet, PackedUNet):
    """The same for SDXL's UNet: graphs take the packed prompt as it is."""


class GraphRunner:
    """How a pipeline runs its models as graphs, for as long as they are what they were."""

    def __init__(self, pipe: Any, graphs: GraphSet) -> None:
        self.graphs, self._said = graphs, False
        models = (*pipe._text_encoders(), pipe.unet)
        self._watched = {id(model): _Watched(model) for model in models}
        halves = [getattr(pipe.vae, name, None) for name in ("encoder", "quant_conv")]
        unused = [half for half in halves if half is not None]  # a picture is only decoded
        self._watched[id(pipe.vae)] = _Watched(pipe.vae, unused)
        self._known: dict[int, bool] | None = None  # within ``once``
        given = (pipe.unet, graphs, partial(self.holds, pipe.unet))
        self.unet: SplitUNet = (
            GraphPackedUNet(*given, factor=pipe.vae_scale_factor)
            if pooled_width(pipe.unet)
            else GraphUNet(*given)
        )

    def holds(self, model: Any) -> bool:
        """Whether the graphs are of this model and of the weights that it has now."""
        key, known = id(model), self._known
        if key not in self._watched:
            return False
        if known is not None and key in known:
            return known[key]
        why = self._watched[key].why()
        if known is not None:
            known[key] = why is None
        if why is not None and not self._said:
            self._said = True
            warnings.warn(f"{why}: PyTorch paints", stacklevel=2)
        return why is None

    @contextmanager
    def once(self) -> Iterator[None]:
        """Within, the time of one pass, every model's weights are read once."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def embed(self, encoders: Sequence[Any], ids: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """Token ids (B, N) to embeddings (B, N, D); ``plain`` does it in PyTorch."""
        if not all(map(self.holds, encoders)):
            return plain()
        return torch.from_numpy(self.graphs.encode_text(ids.cpu().numpy()))

    def image(self, vae: Any, z: Tensor, decode: Callable[..., Tensor]) -> Tensor:
        """z (B, C, h, w) to images (B, 3, H, W) in [-1, 1]; ``decode`` does it in PyTorch."""
        if not self.holds(vae):
            return decode(vae, z)
        return torch.from_numpy(2 * self.graphs.image(array(z)) - 1)  # see ``pipelines.vae.unit``

    def facts(self) -> dict[str, str]:
        """What a picture's metadata says of the engine."""
        return self.graphs.facts()

    def undo(self) -> None:
        """Nothing of the pipeline was changed."""


class _Watched:
    """A model, and what it was when its graph was taken; ``unused`` are its parts of which the
    graph knows nothing."""

    def __init__(self, model: Any, unused: Sequence[Any] = ()) -> None:
        self.model, self._unused, self._bits = model, unused, Bits()
        self._seen = self._look()
        self._mark = self._bits.mark(self._seen.tensors())

    def _look(self) -> Snapshot:
        return Snapshot(self.model, without=self._unused)

    def why(self) -> str | None:
        """Why its graph does not stand for it any more, or nothing."""
        now, changes = self._seen, []
        if not self._seen.same():
            why, changes = altered(self.model), [*self._seen.changes()]
            if why is not None:
                return why
            now = self._look()
        if self._bits.mark(now.tensors()) != self._mark:
            return "the weights are not those of the graph"
        for name, kind in changes:
            if name not in IDLE:
                return f"{name.strip('_')} of {kind} has changed"
        self._seen = now
        return None


def array(tensor: Tensor) -> Any:
    """As float32 in numpy."""
    return tensor.detach().float().cpu().contiguous().numpy()
