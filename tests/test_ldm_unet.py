"""``LdmUNet`` without ComfyUI or Forge: a diffusers UNet's own modules, laid out as theirs are.

``SplitUNet`` runs the same modules in diffusers' way; the two must agree to the bit, or nearly.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import TEXT_WIDTH, small_unet
from torch import Tensor, nn

from tiue_core import SplitUNet
from tiue_core.core.ldm_unet import LdmUNet

TIMES = torch.tensor([751, 501, 251, 1])
CLOSE = 5e-6  # float32; a batch of another size is summed in another order


def original_layout(unet: Any) -> Any:
    """A diffusers UNet's modules in the lists that the latent-diffusion code keeps them in."""
    inputs, outputs = [[unet.conv_in]], []
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        inputs += [[r, a] for r, a in zip(block.resnets, attentions, strict=True)]
        inputs += [[sampler] for sampler in block.downsamplers or ()]
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        outputs += [[r, a] for r, a in zip(block.resnets, attentions, strict=True)]
        outputs[-1] += block.upsamplers or ()
    mid = unet.mid_block
    middle = [mid.resnets[0], mid.attentions[0], mid.resnets[1]]

    def layers(block: list) -> list:
        return [layer for layer in block if layer is not None]

    return SimpleNamespace(
        input_blocks=[layers(block) for block in inputs],
        middle_block=layers(middle),
        output_blocks=[layers(block) for block in outputs],
        out=nn.Sequential(unet.conv_norm_out, unet.conv_act, unet.conv_out),
        time_embed=unet.time_embedding,
        waves=unet.time_proj,
        num_classes=None,
    )


class Laid(LdmUNet):
    """A host whose blocks are diffusers' layers."""

    room = 99  # images that fit into memory

    def _block(
        self, block: Any, h: Tensor, emb: Tensor, context: Tensor, options: dict, size: Any
    ) -> Tensor:
        if len(h) > self.room:
            raise torch.OutOfMemoryError("out of memory (of this test)")
        for layer in block:
            kind = type(layer).__name__
            if kind.startswith("Resnet"):
                h = layer(h, emb)
            elif kind.startswith("Transformer"):
                h = layer(h, encoder_hidden_states=context).sample
                options["transformer_index"] += 1
            elif kind.startswith("Upsample"):
                h = layer(h, None if size is None else size[2:])
            else:
                h = layer(h)
        return h

    def _waves(self, timesteps: Tensor) -> Tensor:
        return self.unet.waves(timesteps)

    def _controlled(self, h: Tensor, control: dict[str, list] | None, part: str) -> Tensor:
        return h + control[part].pop() if control and control[part] else h


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return small_unet().requires_grad_(False)


def inputs(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 4, *size, generator=generator)
    return noise, torch.randn(2, 7, TEXT_WIDTH, generator=generator)


def both(host: LdmUNet, noise: Tensor, context: Tensor, options: dict, **more: Any) -> Tensor:
    features = host.encode(noise, TIMES[0], context, transformer_options=options, **more)
    return host.decode(features, TIMES, context, transformer_options=options)


@pytest.mark.parametrize("size", [(8, 8), (17, 13)])
def test_the_two_halves_are_split_unets(unet: Any, size: tuple[int, int]) -> None:
    noise, context = inputs(size)
    expected = SplitUNet(unet)(noise, TIMES, context)
    out = both(Laid(original_layout(unet)), noise, context, {})
    assert out.shape == (4, 2, 4, *size)
    assert (out - expected).abs().max() <= CLOSE


def test_a_controlnets_residuals_reach_middle_and_skips(unet: Any) -> None:
    noise, context = inputs((8, 8))
    host = Laid(original_layout(unet))
    plain = host.encode(noise, TIMES[0], context, transformer_options={})
    generator = torch.Generator().manual_seed(2)
    skips = [torch.randn(s.shape, generator=generator) for s in plain.skips]
    mid = torch.randn(plain.mid.shape, generator=generator)
    control = {"input": [], "middle": [mid], "output": list(skips)}
    out = both(host, noise, context, {}, control=control)
    split = SplitUNet(unet)
    features = split.encode(
        noise,
        TIMES[0],
        context,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=mid,
    )
    expected = split.decode(features, TIMES, context)
    assert control == {"input": [], "middle": [], "output": []}
    assert (out - expected).abs().max() <= CLOSE


def test_patches_see_rows_timestep_by_timestep(unet: Any) -> None:
    """What hangs on the blocks is told of K times the rows, and cannot reach the features."""
    noise, context = inputs((8, 8))
    host, seen = Laid(original_layout(unet)), []

    def patch(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        seen.append((options["block"], len(h), len(skip), list(options["cond_or_uncond"])))
        h *= 1.5  # in place, as FreeU does
        skip *= 0.5
        return h, skip

    options = {"cond_or_uncond": [0, 1], "patches": {"output_block_patch": [patch]}}
    features = host.encode(noise, TIMES[0], context, transformer_options=options)
    kept = features.mid.clone(), features.skips[0].clone()
    together = host.decode(features, TIMES, context, transformer_options=options)
    assert seen[0] == (("output", 0), 8, 8, [0, 1] * 4)
    assert torch.equal(features.mid, kept[0]) and torch.equal(features.skips[0], kept[1])
    alone = host.decode(features, TIMES, context, transformer_options=options, chunk=1)
    assert (together - alone).abs().max() <= CLOSE
    assert options["cond_or_uncond"] == [0, 1]


def test_it_halves_its_chunk_when_memory_runs_out(unet: Any) -> None:
    noise, context = inputs((8, 8))
    host = Laid(original_layout(unet))
    expected = both(host, noise, context, {})
    host.room = 3
    assert (both(host, noise, context, {}) - expected).abs().max() <= CLOSE
    host.room = 1
    features = Laid(host.unet).encode(noise, 1, context, transformer_options={})
    with pytest.raises(torch.OutOfMemoryError):
        host.decode(features, TIMES, context, transformer_options={"original_shape": [2, 4, 8, 8]})


def test_attention_layers_are_counted_on(unet: Any) -> None:
    """A host names attention layers by a running number; the decoder's go on where it stood."""
    noise, context = inputs((8, 8))
    host, options = Laid(original_layout(unet)), {}
    host.encode(noise, TIMES[0], context, transformer_options=options)
    assert options["transformer_index"] == host._transformers_in_encoder > 0
