"""Forge's own UNet as an encoder that runs once and a decoder for K timesteps."""

from __future__ import annotations

from typing import Any

from backend import memory_management
from backend.nn.unet import apply_control, timestep_embedding
from modules import shared
from modules.sd_samplers_common import InterruptedException
from torch import Tensor

from tiue_core.core.ldm_unet import LdmUNet, Options
from tiue_core.core.unet import Features


class ForgeUNet(LdmUNet):
    """The two halves of an ``IntegratedUNet2DConditionModel``.

    Beside what ComfyUI has, modifiers run before and after every block (Kohya HRFix), a wrapper
    around every normalization (tiling), and options name the rows of the prompt and its negative.
    """

    def decode(
        self,
        features: Features,
        timesteps: Tensor,
        context: Tensor,
        *,
        y: Tensor | None = None,
        transformer_options: Options,
        chunk: int | None = None,
    ) -> Tensor:
        if transformer_options.get("patches_replace"):
            chunk = 1  # StyleAlign joins the images of a batch: of one timestep, not of several
        return super().decode(
            features,
            timesteps,
            context,
            y=y,
            transformer_options=transformer_options,
            chunk=chunk,
        )

    def _step(
        self,
        block: Any,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        options: Options,
        control: dict[str, list] | None = None,
        size: Any = None,
    ) -> Tensor:
        h = _modified(h, "before", options)
        h = super()._step(block, h, emb, context, options, control, size)
        return _modified(h, "after", options)

    def _block(
        self, block: Any, h: Tensor, emb: Tensor, context: Tensor, options: Options, size: Any
    ) -> Tensor:
        return block(h, emb, context, options, size)

    def _controlled(self, h: Tensor, control: dict[str, list] | None, part: str) -> Tensor:
        return apply_control(h, control, part)

    def _waves(self, timesteps: Tensor) -> Tensor:
        return timestep_embedding(timesteps, self.unet.model_channels)

    def _out(self, h: Tensor, options: Options) -> Tensor:
        options["block"] = ("last", 0)
        h = _modified(h, "before", options)
        norm, *rest = self.unet.out
        wrapper = options.get("group_norm_wrapper")
        h = norm(h) if wrapper is None else wrapper(norm, h, options)
        for layer in rest:
            h = layer(h)
        return _modified(h, "after", options)

    def _repeated(self, options: Options, B: int, n: int) -> Options:
        repeated = super()._repeated(options, B, n)
        if "cond_mark" in options:
            repeated["cond_mark"] = options["cond_mark"].repeat(n)
        for rows in ("cond_indices", "uncond_indices"):
            if rows in options:
                repeated[rows] = [k * B + row for k in range(n) for row in options[rows]]
        return repeated

    def _check_interrupt(self) -> None:
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException

    def _free_memory(self) -> None:
        memory_management.soft_empty_cache()


def _modified(h: Tensor, when: str, options: Options) -> Tensor:
    for modifier in options.get("block_modifiers", ()):
        h = modifier(h, when, options)
    return h
