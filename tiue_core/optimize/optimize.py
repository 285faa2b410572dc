"""``TiuePipeline.optimize``: one call, and the same pictures sooner."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import whole
from ..core.one_pass import one_pass
from ..core.unet import SplitUNet
from ..shared import SharedUNet
from ..shared.doubling import double_cheaply, double_plainly
from ..shared.measure import Times, clock
from . import cpu, packed
from .graphs import Graphs
from .watch import Watch

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Progress = Callable[[int, int, str], Any]


class Optimizable:
    """What ``optimize`` gives to a pipeline with a ``unet`` and a ``vae``."""

    unet: Any
    vae: Any
    to: Callable[..., Any]
    _optimized: Optimized | None = None

    @property
    def split_unet(self) -> SplitUNet:
        """The UNet in its two halves, with savings where ``optimize`` was called."""
        optimized = self._optimized
        if optimized is not None and optimized.unet.unet is self.unet:
            return optimized.unet
        return SplitUNet(self.unet)

    @torch.no_grad()
    def optimize(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        layout: str | None = None,
        savings: bool = True,
        pack: bool | None = None,
        graphs: bool | None = None,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Run faster: the same pictures, up to rounding. Takes some pictures' time, once.

        What pays is measured at the size and batch given, which are also warmed up; other sizes
        work too, with one warm-up of their own. If nothing pays, the plain path stays.

        Args:
            width, height: in pixels; the student's own by default.
            batch_size: images at a time.
            dtype: of all models; as they are by default.
            layout: "contiguous" or "channels_last"; the faster one by default.
            savings: compute what the K decoders share once (``tiue_core.shared``).
            pack: on a CPU, run every layer the fastest way, with its weight prepared, for as much
                memory again or more (``speed.packed``); by default where it is possible and
                nothing is compiled. There also ``speed.cpu.keep_pages``.
            graphs: CUDA graphs, for at most ``speed.graphs.LIMIT`` sizes; on a GPU by default.
            compile: ``torch.compile`` of every block, frozen on a CPU. Minutes, once per size.
            progress: called with (steps done, steps in all, what comes next).

        Returns:
            The pipeline itself.
        """
        if layout is not None and layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: give one of {', '.join(LAYOUTS)}")
        self.plain()
        if dtype is not None:
            self.to(dtype)
        on_cpu = self.unet.device.type == "cpu"
        if on_cpu:
            cpu.keep_pages()
        plan = _Trial(self, width, height, whole("batch_size", batch_size, 1), progress)
        before = plan.seconds("as it is")
        if layout is None:
            layout = plan.faster_layout(before)
        _lay_out(self, layout)
        self._optimized = Optimized(
            self,
            savings=savings,
            pack=on_cpu and not compile and packed.can_pack() if pack is None else pack,
            graphs=not on_cpu and torch.cuda.is_available() if graphs is None else graphs,
            compile=compile,
        )
        if savings:
            plan.measure(self._optimized)
        after = plan.seconds("optimized")
        self._optimized.seconds = (before, after)
        if after > before:
            self.plain()
            _lay_out(self, "contiguous")
            warnings.warn("optimizing does not pay at this size: it runs as before", stacklevel=3)
        return self

    def _decode_images(self, vae: Any, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""
        if self._optimized is None:
            return vae.decode(z, return_dict=False)[0]
        return self._optimized.decode(vae, z)

    def plain(self) -> Any:
        """Undo ``optimize``, all but dtype and layout."""
        if self._optimized is not None:
            self._optimized.undo()
            self._optimized = None
        return self


class Optimized:
    """How an optimized pipeline runs its models."""

    def __init__(
        self, pipe: Any, *, savings: bool, pack: bool, graphs: bool, compile: bool
    ) -> None:
        self.models = (pipe.unet, pipe.vae)
        self.pack, self.compile = pack, compile
        self.graphs = Graphs() if graphs else None
        self.unet: SplitUNet = SplitUNet(pipe.unet)
        self.parts: Times = {}
        self.seconds = (0.0, 0.0)  # before and after, for the UNet
        self._watches = [Watch(model) for model in self.models]
        self._seen: list[tuple] = []
        if savings:
            self.unet = SharedUNet(pipe.unet, prepare=self._prepare, run=self._run)
            double_cheaply(pipe.vae)
        encoder = (*pipe.unet.down_blocks, pipe.unet.mid_block)
        for block in encoder if savings else (*encoder, *pipe.unet.up_blocks):
            self._prepare(block)
        self._prepare(pipe.vae.decoder)

    def undo(self) -> None:
        for model in self.models:
            packed.unpack(model)
            double_plainly(model)
            for module in model.modules():
                module._compiled_call_impl = None

    def decode(self, vae: Any, z: Tensor) -> Tensor:
        """Latents to images in [-1, 1]."""
        return self._run(vae.decode, z, False)[0]

    def _prepare(self, module: nn.Module) -> None:
        """For a block of the encoder, and for every decoder that the savings make."""
        if self.pack:
            packed.pack(module)
        if self.compile:
            on_cpu = next(module.parameters()).device.type == "cpu"
            for block in getattr(module, "levels", [module]):
                block.compile(dynamic=False, options={"freezing": True} if on_cpu else None)

    def _run(self, function: Callable, *arguments: Any) -> Any:
        if self.graphs is None:
            return function(*arguments)
        now = [watch.state(written=False) for watch in self._watches]
        if now != self._seen:  # graphs hold the addresses of the tensors they were made with
            self.graphs.clear()
            self._seen = now
        return self.graphs(function, *arguments)


class _Trial:
    """One batch of noise, to try things on."""

    def __init__(
        self, pipe: Any, width: int | None, height: int | None, B: int, progress: Progress | None
    ) -> None:
        self.pipe, self.done = pipe, 0
        self.progress = progress or (lambda done, total, what: None)
        unet, shape = pipe.unet, pipe._latent_shape(width, height, None, B)
        like = {"device": unet.device, "dtype": unet.dtype}
        tokens = pipe.text_encoder.config.max_position_embeddings
        self.noise = torch.randn((B, *shape), **like)
        self.prompts = torch.randn((B, tokens, unet.config.cross_attention_dim), **like)
        self.schedule = pipe.schedule()

    def say(self, what: str) -> None:
        self.progress(self.done, 4, what)
        self.done += 1

    def seconds(self, what: str) -> float:
        self.say(what)
        unet = self.pipe.split_unet
        return clock(
            lambda: one_pass(unet, self.schedule, self.noise, self.prompts), self.noise.device
        )

    def faster_layout(self, contiguous: float) -> str:
        _lay_out(self.pipe, "channels_last")
        return "channels_last" if self.seconds("channels last") < contiguous else "contiguous"

    def measure(self, optimized: Optimized) -> None:
        self.say("savings")
        unet, timesteps = optimized.unet, self.schedule.timesteps
        assert isinstance(unet, SharedUNet)
        features = unet.encode(self.noise, timesteps[0], self.prompts)
        optimized.parts = unet.measure(features, timesteps.tolist(), self.prompts)


def _lay_out(pipe: Any, layout: str) -> None:
    for model in (pipe.unet, pipe.vae):
        model.to(memory_format=LAYOUTS[layout])
