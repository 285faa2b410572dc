"""Models on a device, and the systems that run them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..baselines.recipes import KEY_STEPS
from ..core.unet import SplitUNet
from ..optimize import packed
from ..optimize.graphs import Graphs
from ..optimize.optimize import LAYOUTS
from ..shared import SharedUNet
from ..shared.doubling import double_cheaply
from ..shared.layers import as_written
from ..shared.unet import directly
from .shapes import flops, models
from .systems import GUIDED_STEPS, Stages, System, authors, loop, one_way


class Bench:
    """One shape, on one device, in one dtype and layout; and the authors' own beside it. With
    ``graphs`` also as one graph (``whole.py``). ``capture`` in CUDA graphs, on a GPU."""

    def __init__(
        self,
        shape: str,
        size: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        layout: str = "channels_last",
        graphs: bool = False,
        capture: bool = True,
    ) -> None:
        self.shape, self.made, self.layout = shape, models(shape), layout
        self.device, self.dtype = torch.device(device), dtype
        self.on_cpu = self.device.type == "cpu"
        self.name = torch.cuda.get_device_name(self.device) if not self.on_cpu else device
        self.latent = (size or self.made.pixels) // self.made.factor
        self.peaks: dict[str, list[int]] = defaultdict(list)

        made, place = self.made, {"memory_format": LAYOUTS[layout]}
        same = layout == "contiguous" and dtype == torch.float32
        self.as_run = made.unet if same else _copied(made.unet, all=dtype != torch.float32)
        self.as_run.to(self.device)
        self.unet = made.unet.to(self.device, dtype).to(**place)
        self.vae, self.tiny = (m.to(self.device, dtype).to(**place) for m in (made.vae, made.tiny))
        self.text = made.text_encoder.to(self.device, dtype)
        captured = capture and not self.on_cpu
        self.run: Callable[..., Any] = Graphs(limit=64) if captured else directly

        self.thrifty = SharedUNet(self.unet, prepare=self._prepare, run=self.run)
        self.split = SharedUNet(self.unet, parts=(), prepare=self._prepare, run=self.run)
        for model in (self.unet, self.vae.decoder, self.tiny.decoder):
            self._prepare(model)
        for model in (self.unet, self.vae):
            double_cheaply(model)
        self.whole: Any = None
        if graphs:
            from .whole import Whole

            threads = torch.get_num_threads()
            self.whole = Whole(shape, self.latent, self.device, dtype, threads)

    def _prepare(self, model: Any) -> None:
        if self.on_cpu:
            packed.pack(model)

    def systems(self) -> list[System]:
        """The rows of the table."""
        scheduler, split = self.made.scheduler, self.split
        exact, fast = (self.made.schedule(decoders) for decoders in ("exact", "fast"))
        all_steps = exact.timesteps.tolist()
        plain, as_run = SplitUNet(self.unet), SplitUNet(self.as_run)
        ours = [one_way(self.thrifty, schedule) for schedule in (exact, fast, fast)]
        guided = loop(split, scheduler, all_steps[:1], guidance=7.5)
        fifty = {"encoder": GUIDED_STEPS, "decoders": GUIDED_STEPS}
        nine = {"encoder": len(KEY_STEPS), "decoders": GUIDED_STEPS}
        n, m = len(exact), len(fast)
        tiny = "its own decoder" if self.tiny is self.vae else "TAESD"
        theirs = [authors(unet, scheduler) for unet in (plain, split, as_run)]
        one, four = (loop(split, scheduler, steps) for steps in ([999], all_steps))
        return [
            System("exact", "ours", ours[0], decoders=n),
            System("fast", f"ours, {m} decoders for {n}", ours[1], decoders=m),
            System("draft", f"fast, then {tiny}", ours[2], decoders=m, decoder="tiny"),
            System("authors", "same dtype and layout", theirs[0], decoders=n, as_written=True),
            System("authors-tuned", "and what all systems get", theirs[1], decoders=n),
            System("authors-as-run", "float32, contiguous", theirs[2], True, True, decoders=n),
            System("one-step", "as SD-Turbo at 1, SwiftBrush", one),
            System("four-step", "as SD-Turbo at 4", four, loops=4),
            System("ddim-50", "Stable Diffusion, guided", guided, times=fifty, rows=2),
            System("faster-diffusion", "9 of 50 encoders", guided, times=nine, rows=2),
            *(self.whole.systems() if self.whole else []),
        ]

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Noise and prompts for ``batch`` images, in float32."""
        generator = torch.Generator().manual_seed(0)
        width = self.unet.config.cross_attention_dim
        noise = torch.randn((batch, 4, self.latent, self.latent), generator=generator)
        prompts = torch.randn((batch, self.made.tokens.shape[1], width), generator=generator)
        return noise.to(self.device), prompts.to(self.device)

    @torch.no_grad()
    def shared(self, batch: int, decoders: set[str]) -> dict[str, float]:
        """Seconds of what systems share: "text", and of "vae" and "tiny" those asked for."""
        stage = Stages(self.device)
        noise, _ = self.inputs(batch)
        z = noise.to(self.dtype)
        tokens = self.made.tokens.to(self.device).expand(batch, -1)
        with stage("text"):
            self.run(self._encode, tokens)
        for name in sorted(decoders):
            with stage(name):
                self.run(self._vae if name == "vae" else self._tiny, z)
        return dict(stage.seconds)

    def _encode(self, tokens: Tensor) -> Tensor:
        return self.text(tokens)[0]

    def _vae(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, return_dict=False)[0]

    def _tiny(self, z: Tensor) -> Tensor:
        return self.tiny.decode(z, return_dict=False)[0]

    def flops(self, system: System, batch: int) -> int:
        """Of the UNet part and the image decoder as the authors wrote them, counted."""
        with torch.device("meta"):
            noise = torch.empty(batch * system.rows, 4, self.latent, self.latent)
            width = self.unet.config.cross_attention_dim
            prompts = torch.empty(batch * system.rows, self.made.tokens.shape[1], width)
        unet = SplitUNet(_skeleton(self.unet))
        features: list[Any] = []
        with as_written():
            encoder = flops(lambda: features.append(unet.encode(noise, 1, prompts)))
            K = system.decoders
            decoders = flops(lambda: unet.decode(features[0], [1] * K, prompts))
            vae = _skeleton(self.vae if system.decoder == "vae" else self.tiny)
            image = flops(lambda: vae.decode(noise[:batch]))
        times = system.times or {}
        loops = system.loops
        return (
            encoder * times.get("encoder", loops) + decoders * times.get("decoders", loops) + image
        )


def _skeleton(model: Any) -> Any:
    """The same model without numbers."""
    with torch.device("meta"):
        return type(model).from_config(model.config).eval()


def _copied(model: Any, all: bool) -> Any:
    """A copy; if not of all, only of the weights that have a layout."""
    shared = [] if all else [weight for weight in model.parameters() if weight.ndim != 4]
    return copy.deepcopy(model, {id(weight): weight for weight in shared})
