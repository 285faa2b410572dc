"""ComfyUI's own ``UNetModel`` as an encoder that runs once and a decoder for K timesteps.

ComfyUI's submodules do the work, block by block and in its own order, with its
``transformer_options`` around them: LoRA patches, attention overrides, ControlNet, FreeU,
offloading and quantized weights keep working.
"""

from __future__ import annotations

from typing import Any

from comfy import model_management
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from torch import Tensor

from ...tiue_core.core.ldm_unet import LdmUNet


class ComfyUNet(LdmUNet):
    """The two halves of a ``UNetModel``; what hangs on it arrives in ``transformer_options``."""

    def _block(
        self,
        block: Any,
        h: Tensor,
        emb: Tensor,
        context: Tensor,
        options: dict[str, Any],
        size: Any,
    ) -> Tensor:
        return forward_timestep_embed(block, h, emb, context, options, size)

    def _controlled(self, h: Tensor, control: dict[str, list] | None, part: str) -> Tensor:
        return apply_control(h, control, part)

    def _waves(self, timesteps: Tensor) -> Tensor:
        return timestep_embedding(timesteps, self.unet.model_channels)

    def _patched(self, emb: Tensor, options: dict[str, Any]) -> Tensor:
        for patch in options.get("patches", {}).get("emb_patch", ()):
            emb = patch(emb, self.unet.model_channels, options)
        return emb

    def _check_interrupt(self) -> None:
        model_management.throw_exception_if_processing_interrupted()

    def _free_memory(self) -> None:
        model_management.soft_empty_cache()
