"""Models to time: Stable Diffusion's shapes with arbitrary weights, on which speed does not depend,
and the built-in miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.schedule import OneWaySchedule
from ..errors import TiueError

SHAPES = ("sd21", "sd15", "stickers")
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
}
_TEXTS = {"sd21": (1024, 4096, 23, 16), "sd15": (768, 3072, 12, 12)}


@dataclass
class Models:
    """What a student is made of. ``unet`` is in float32 and in PyTorch's own layout."""

    unet: Any
    vae: Any
    tiny: Any  # TAESD's layout; for the miniature its own autoencoder, which is smaller
    text_encoder: Any
    tokens: Tensor  # (1, N)
    scheduler: Any
    pixels: int

    @property
    def factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def schedule(self, decoders: str) -> OneWaySchedule:
        return OneWaySchedule.from_config(self.scheduler, decoders=decoders)


def models(shape: str) -> Models:
    """Everything in float32 on the CPU."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if shape == "stickers":
        from ..pipelines.base import TiuePipeline
        from ..pipelines.text import token_limit, tokenize

        pipe = TiuePipeline.from_pretrained("stickers")
        limit = token_limit(pipe.tokenizer, pipe.text_encoder)
        prompt = "a cat on a blue background"
        tokens = tokenize(pipe.tokenizer, [prompt], limit)
        return Models(
            unet=pipe.unet,
            vae=pipe.vae,
            tiny=pipe.vae,
            text_encoder=pipe.text_encoder,
            tokens=tokens.input_ids,
            scheduler=pipe.scheduler,
            pixels=pipe.unet.config.sample_size * pipe.vae_scale_factor,
        )
    if shape not in _UNETS:
        raise TiueError(f"no shape '{shape}': give one of {', '.join(SHAPES)}")
    width, inner, layers, heads = _TEXTS[shape]
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    return Models(
        unet=_filled(lambda: UNet2DConditionModel(sample_size=64, **_UNETS[shape])),
        vae=_filled(
            lambda: AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                sample_size=512,
            )
        ),
        tiny=_filled(lambda: AutoencoderTiny()),
        text_encoder=_filled(lambda: CLIPTextModel(text)),
        tokens=torch.arange(77)[None],
        scheduler=DDIMScheduler(**_SCHEDULER),
        pixels=512,
    )


def _filled(make: Any) -> Any:
    """A model made without its own slow initialization, with weights that keep activations tame."""
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("position_ids"):
            tensor.copy_(torch.arange(tensor.shape[-1]).expand_as(tensor))
        elif tensor.ndim > 1:
            scale = 0.7 / tensor[0].numel() ** 0.5
            flat = tensor.view(-1)
            for first in range(0, len(flat), len(noise)):
                flat[first : first + len(noise)] = noise[: len(flat) - first] * scale
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.01)
    return model


def flops(function: Any, *arguments: Any) -> int:
    """Floating-point operations of a call with tensors on the meta device, attention included."""
    from torch.utils.flop_counter import FlopCounterMode

    attention = _CountAttention()
    with attention, FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops() + attention.flops


class _CountAttention(TorchFunctionMode):
    """torch's own counter misses scaled_dot_product_attention off the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function is nn.functional.scaled_dot_product_attention:
            query, key = arguments[0], arguments[1]
            self.flops += 4 * query.numel() * key.shape[-2]
            return torch.empty_like(query)
        return function(*arguments, **options)
