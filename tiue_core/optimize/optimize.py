"""``TiuePipeline.optimize``: one call, and the same pictures sooner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import whole
from ..core.one_pass import one_pass
from ..core.packed import extra_rows, split
from ..core.unet import SplitUNet
from ..export.write import export_set, weights_hash
from ..shared import SharedUNet, shared
from ..shared.altered import altered
from ..shared.doubling import double_cheaply, double_plainly
from ..shared.exact import NotUnderstoodError
from ..shared.measure import Times, clock
from ..shared.snapshot import Snapshot
from . import cache, cpu, engines, packed
from .graph_unet import GraphRunner
from .graphs import Graphs

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Progress = Callable[[int, int, str], Any]


def optimize(
    pipe: Any,
    engine: str = "auto",
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
) -> GraphRunner | Optimized | None:
    """Have a pipeline run faster: the same pictures, up to rounding. Takes some pictures' time.

    In PyTorch, what pays is measured at the size and batch given, which are also warmed up; other
    sizes work too, with one warm-up of their own. If nothing pays, the plain path stays.

    Args:
        engine: "torch", "onnxruntime", "openvino", or "auto": the fastest of those that have a
            graph of this student (``tiue cache``) and were measured to paint what torch paints,
            in less time.
            Asked for by name, an engine's graph is made where there is none.
        width, height: in pixels; the student's own by default.
        batch_size: images at a time.
        dtype: of all models, as they are by default; of an engine, float32 or bfloat16.
        layout: "contiguous" or "channels_last"; the faster one by default.
        savings: compute what the K decoders share once (``tiue_core.shared``).
        pack: on a CPU, run every layer the fastest way, with its weight prepared, for as much
            memory again or more (``optimize.packed``); by default where it is possible and
            nothing is compiled. There also ``optimize.cpu.keep_pages``.
        graphs: CUDA graphs, for at most ``graphs.LIMIT`` sizes; on a GPU by default.
        compile: ``torch.compile`` of every block, frozen on a CPU. Minutes, once per size.
        progress: called with (steps done, steps in all, what comes next).

    Returns:
        What runs the models from now on; none, where they run as they are.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}: give one of {', '.join(LAYOUTS)}")
    plan = _Trial(pipe, width, height, whole("batch_size", batch_size, 1), progress)
    if engine != "torch":
        runner = graph_runner(pipe, engine, dtype)
        if runner is not None:
            return runner
    if dtype is not None:
        pipe.to(dtype)
        plan = _Trial(pipe, width, height, batch_size, progress)
    on_cpu = pipe._execution_device.type == "cpu"  # weights may lie elsewhere
    if on_cpu:
        cpu.keep_pages()
    before = plan.seconds("as it is", plan.plain())
    if layout is None:
        _lay_out(pipe, "channels_last")
        last = plan.seconds("channels last", plan.plain())
        layout = "channels_last" if last < before else "contiguous"
    _lay_out(pipe, layout)
    made = Optimized(
        pipe,
        savings=savings,
        pack=on_cpu and not compile and packed.can_pack() if pack is None else pack,
        graphs=not on_cpu and torch.cuda.is_available() if graphs is None else graphs,
        compile=compile,
    )
    if savings:
        plan.measure(made)
    after = plan.seconds("optimized", made.unet)
    made.seconds = (before, after)
    if after <= before:
        return made
    made.undo()
    _lay_out(pipe, "contiguous")
    warnings.warn("optimizing does not pay at this size: it runs as before", stacklevel=4)
    return None


def graph_runner(
    pipe: Any,
    engine: str,
    dtype: torch.dtype | None = None,
    record: dict[str, Any] | None = None,
) -> GraphRunner | None:
    """A pipeline's models as graphs of an engine, or none: PyTorch is to paint.

    Args:
        record: what a new graph says of the student; see ``export.write.export``.

    Raises:
        TiueError: the engine is not installed, or its graph cannot be written.
    """
    engines.check(engine)
    asked = engine != "auto"
    why = _no_graph(pipe)
    folder = None if why else _graphs_of(pipe, asked, record or {"loras": []})
    precision = None if dtype is None else str(dtype).removeprefix("torch.")
    rival = f"torch {torch.__version__}", partial(_seconds, pipe)
    graphs = None if folder is None else engines.choose(folder, engine, precision, without=rival)
    if graphs is not None:
        return GraphRunner(pipe, graphs)
    if asked:
        why = why or "it does not paint what torch paints"
        warnings.warn(f"{engine} is not taken ({why}): PyTorch paints", stacklevel=5)
    return None


def _seconds(pipe: Any, prompt: str) -> float:
    """PyTorch's own time for one picture, from words to pixels, as the models are now."""
    return clock(lambda: pipe(prompt, seed=0), pipe.unet.device)


def _no_graph(pipe: Any) -> str:
    """Why a pipeline cannot be run as graphs; empty if it can."""
    if pipe.unet.device.type != "cpu":
        return "the models are on a GPU"
    if pipe.unet.dtype != torch.float32:
        return "the models are not in float32"
    if getattr(pipe.text_encoder.config, "use_attention_mask", False):
        return "a student of this layout has no graph"
    models = (*pipe._text_encoders(), pipe.unet, pipe.vae)
    return next((why for model in models if (why := altered(model))), "")


def _graphs_of(pipe: Any, make: bool, record: dict[str, Any]) -> Path | None:
    """The set of a pipeline's weights and timesteps."""
    timesteps = pipe.schedule().timesteps.tolist()
    if not make and not any(about["timesteps"] == timesteps for _, about in cache.kept()):
        return None  # so there is nothing to take a hash for
    found = weights_hash(pipe)
    folder = cache.find(weights_hash=found, timesteps=timesteps)
    if folder is not None or not make:
        return folder
    try:
        return cache.keep(
            lambda folder: export_set(pipe, folder, record=record),
            f"{found[:16]}-{len(timesteps)}",
        )
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        warnings.warn(f"this student cannot be traced ({first})", stacklevel=6)
        return None


class Optimized:
    """How an optimized pipeline runs its models."""

    def __init__(
        self, pipe: Any, *, savings: bool, pack: bool, graphs: bool, compile: bool
    ) -> None:
        self.models = (pipe.unet, pipe.vae)
        self.pack, self.compile = pack, compile
        self.graphs = Graphs() if graphs else None
        self.unet: SplitUNet = split(pipe.unet, pipe.vae_scale_factor)
        self.parts: Times = {}
        self.seconds = (0.0, 0.0)  # before and after, for the UNet
        self._watched: tuple[Any, ...] = self.models
        self._seen: Snapshot | None = None
        self._places: list[tuple] = []
        self._altered = False
        if savings:
            self.unet = shared(
                pipe.unet, pipe.vae_scale_factor, prepare=self._prepare, run=self._run
            )
            double_cheaply(pipe.vae)
        encoder = (*pipe.unet.down_blocks, pipe.unet.mid_block)
        for block in encoder if savings else (*encoder, *pipe.unet.up_blocks):
            self._prepare(block)
        self._prepare(pipe.vae.decoder)

    def facts(self) -> dict[str, str]:
        """What a picture's metadata says of the engine: nothing, it is PyTorch."""
        return {}

    def once(self) -> AbstractContextManager[None]:
        """The time of one pass: nothing to do."""
        return nullcontext()

    def undo(self) -> None:
        for model in self.models:
            packed.unpack(model)
            double_plainly(model)
            for module in model.modules():
                module._compiled_call_impl = None

    def embed(self, encoders: Sequence[Any], ids: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """Token ids (B, N) to embeddings (B, N, D)."""
        return plain()

    def image(self, vae: Any, z: Tensor, decode: Callable[..., Tensor]) -> Tensor:
        """z (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""
        if self.graphs is not None and vae not in self._watched:  # another one, or the draft's
            self._watched, self._seen = (*self._watched, vae), None
        return decode(vae, z, lambda vae, latents: self._run(vae.decode, latents, False)[0])

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
        seen = self._seen
        if seen is None or not seen.same() or _places(seen) != self._places:
            self.graphs.clear()  # they hold the addresses of the tensors they were made with
            self._seen = seen = Snapshot(*self._watched)
            self._places = _places(seen)
            self._altered = any(map(altered, self._watched))
        return function(*arguments) if self._altered else self.graphs(function, *arguments)


def _places(snapshot: Snapshot) -> list[tuple]:
    return [(tensor.data_ptr(), tensor.dtype) for tensor in snapshot.tensors()]


class _Trial:
    """One batch of noise, to try things on."""

    def __init__(
        self, pipe: Any, width: int | None, height: int | None, B: int, progress: Progress | None
    ) -> None:
        self.pipe, self.done = pipe, 0
        self.progress = progress or (lambda done, total, what: None)
        unet, shape = pipe.unet, pipe._latent_shape(width, height, None, B)
        like = {"device": pipe._execution_device, "dtype": unet.dtype}
        tokens = pipe.text_encoder.config.max_position_embeddings + extra_rows(unet)
        self.noise = torch.randn((B, *shape), **like)
        self.prompts = torch.randn((B, tokens, unet.config.cross_attention_dim), **like)
        self.schedule = pipe.schedule()

    def plain(self) -> SplitUNet:
        return split(self.pipe.unet, self.pipe.vae_scale_factor)

    def say(self, what: str) -> None:
        self.progress(self.done, 4, what)
        self.done += 1

    def seconds(self, what: str, unet: SplitUNet) -> float:
        self.say(what)
        return clock(
            lambda: one_pass(unet, self.schedule, self.noise, self.prompts), self.noise.device
        )

    def measure(self, optimized: Optimized) -> None:
        self.say("savings")
        unet, timesteps = optimized.unet, self.schedule.timesteps
        assert isinstance(unet, SharedUNet)
        features = unet.encode(self.noise, timesteps[0], self.prompts)
        with suppress(NotUnderstoodError):  # a hook: as it is, which is said with the first picture
            optimized.parts = unet.measure(features, timesteps.tolist(), self.prompts)


def _lay_out(pipe: Any, layout: str) -> None:
    for model in (pipe.unet, pipe.vae):
        model.to(memory_format=LAYOUTS[layout])
