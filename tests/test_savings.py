"""The savings against the plain decoder: the same predictions for less work."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig
from small import SD_SCHEDULER, TEXT_WIDTH, small_unet
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tiue_core import OneWaySchedule, SplitUNet
from tiue_core.shared import SharedUNet

SCHEDULE = OneWaySchedule.from_config(SD_SCHEDULER)
SHAPES = {
    "sd15": {"layers_per_block": 2},
    "sd21": {
        "layers_per_block": 2,
        "use_linear_projection": True,
        "attention_head_dim": (1, 2, 2, 2),
    },
    "straddling": {"layers_per_block": 2, "block_out_channels": (32, 96, 160, 224)},
}
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "conv", "proj_in"]
ADAPTED += ["time_emb_proj", "linear_1", "ff.net.0.proj", "conv_out"]


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.no_grad():
        torch.manual_seed(0)
        yield


def made(**changes: Any) -> Any:
    return small_unet(**changes).double()


def predictions(
    unet: SplitUNet, B: int = 2, size: tuple[int, int] = (8, 16), **options: Any
) -> Any:
    generator = torch.Generator().manual_seed(B)
    noise = torch.randn((B, 4, *size), generator=generator, dtype=torch.float64)
    prompts = torch.randn((B, 7, TEXT_WIDTH), generator=generator, dtype=torch.float64)
    noise, prompts = (x.to(unet.unet.dtype) for x in (noise, prompts))
    features = unet.encode(noise, SCHEDULE.timesteps[0], prompts)
    return unet.decode(features, SCHEDULE.timesteps, prompts, **options)


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def same(unet: Any, thrifty: SharedUNet | None = None, **options: Any) -> float:
    """How far the two are apart; it must not be because of a fallback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = predictions(thrifty or SharedUNet(unet), **options)
    return off(ours, predictions(SplitUNet(unet), **options))


def adapted(unet: Any, layers: list[str] = ADAPTED, **options: Any) -> Any:
    """LoRAs that really do something, on nearly every layer."""
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=layers, **options))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)
    return unet.eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("B", "size"), [(1, (16, 16)), (3, (8, 24)), (2, (9, 7))])
def test_the_same_predictions(shape: str, B: int, size: tuple[int, int]) -> None:
    unet = made(**SHAPES[shape])
    assert same(unet, B=B, size=size) <= 1e-13
    assert same(unet.to(memory_format=torch.channels_last), B=B, size=size) <= 1e-13
    assert same(unet.float(), B=B, size=size) <= 1e-5


@pytest.mark.parametrize("options", [{"chunk": 3}, {"weights": SCHEDULE.weights}])
def test_chunks_and_sums(options: dict[str, Any]) -> None:
    unet = made(**SHAPES["sd15"])
    assert same(unet, **options) <= 1e-13
    both = {"chunk": 1, "weights": SCHEDULE.weights}
    assert same(unet, **both) <= 1e-13


@pytest.mark.parametrize("part", ["skips", "attention", "output", "upsampling"])
def test_each_saving_alone(part: str) -> None:
    unet = made(**SHAPES["sd15"])
    thrifty = SharedUNet(unet, parts=[part])
    weights = SCHEDULE.weights if part == "output" else None
    assert same(unet, thrifty, weights=weights) <= 1e-13
    if part != "attention":  # whose products torch does not count on the CPU
        assert flops(thrifty, weights=weights) < flops(SharedUNet(unet, parts=[]), weights=weights)


def flops(unet: SplitUNet, **options: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        predictions(unet, B=1, size=(16, 16), **options)
    return counter.get_total_flops()


def test_the_work_saved_is_the_work_predicted() -> None:
    """Counted on Stable Diffusion's own proportions, a tenth as wide: 2431 becomes 2051, less what
    attention itself does, which torch does not count."""
    widths = {"block_out_channels": (64, 128, 256, 256), "norm_num_groups": 32, "sample_size": 32}
    unet = made(**{**SHAPES["sd21"], **widths}).float()
    part = flops(SharedUNet(unet)) / flops(SplitUNet(unet))
    assert 0.75 < part < 0.86


@pytest.mark.parametrize("shape", SHAPES)
def test_loras_on_the_shared_layers_too(shape: str) -> None:
    unet = adapted(made(**SHAPES[shape]))
    thrifty = SharedUNet(unet)
    plain = predictions(SplitUNet(unet))
    assert same(unet, thrifty) <= 1e-13
    scaled = {"cross_attention_kwargs": {"scale": 0.3}}
    assert same(unet, thrifty, **scaled) <= 1e-13
    assert off(predictions(thrifty, **scaled), plain) > 1e-3
    unet.disable_adapters()
    assert same(unet, thrifty) <= 1e-13
    assert off(predictions(thrifty), plain) > 1e-3
    unet.enable_adapters()
    unet.fuse_lora()
    assert same(unet, thrifty) <= 1e-13
    assert off(predictions(thrifty), plain) <= 1e-12


def test_a_lora_that_comes_later_and_goes() -> None:
    unet = made(**SHAPES["sd15"])
    thrifty = SharedUNet(unet)
    before = predictions(thrifty)
    adapted(unet)
    assert same(unet, thrifty) <= 1e-13
    assert off(predictions(thrifty), before) > 1e-3
    unet.delete_adapters("default")
    unet.unload_lora()
    assert off(predictions(thrifty), before) <= 1e-13


def test_weights_written_to_in_place() -> None:
    unet = made(**SHAPES["sd15"])
    thrifty = SharedUNet(unet)
    predictions(thrifty)
    block = unet.up_blocks[1]
    for layer in (block.resnets[0].conv1, block.resnets[1].conv_shortcut, block.upsamplers[0].conv):
        layer.weight.mul_(1.5)
        assert same(unet, thrifty) <= 1e-13
    block.resnets[2].conv1.weight.data += 0.01  # which leaves no mark on the tensor
    assert same(unet, thrifty) <= 1e-13
    unet.time_embedding.linear_1.weight.mul_(0.5)
    assert same(unet, thrifty) <= 1e-13
    unet.load_state_dict(made(**SHAPES["sd15"]).state_dict())
    assert same(unet, thrifty) <= 1e-13


def dora(unet: Any) -> None:
    adapted(unet, ["conv1"], use_dora=True)


def hooked(unet: Any) -> None:
    unet.up_blocks[1].resnets[0].conv1.register_forward_hook(lambda _, __, out: out * 1.1)


def replaced(unet: Any) -> None:
    resnet = unet.up_blocks[2].resnets[0]
    forward = resnet.forward
    resnet.forward = lambda *arguments: forward(*arguments) * 1.1


def freeu(unet: Any) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)


@pytest.mark.parametrize("patch", [dora, hooked, replaced, freeu])
def test_a_patched_layer_runs_as_it_is_and_says_so_once(patch: Any) -> None:
    unet = made(**SHAPES["sd15"])
    thrifty = SharedUNet(unet)
    before = predictions(thrifty)
    patch(unet)
    with pytest.warns(UserWarning, match="without savings") as said:
        ours = predictions(thrifty)
        predictions(thrifty)
    assert len(said) == 1
    assert off(ours, predictions(SplitUNet(unet))) <= 1e-13
    assert off(ours, before) > 1e-4


def test_conditions_and_gradients_take_the_plain_path() -> None:
    unet = made(**SHAPES["sd15"])
    thrifty = SharedUNet(unet)
    mask = torch.ones(2, 7).double()
    mask[:, 3:] = 0
    with pytest.warns(UserWarning, match="encoder_attention_mask"):
        ours = predictions(thrifty, encoder_attention_mask=mask)
    assert off(ours, predictions(SplitUNet(unet), encoder_attention_mask=mask)) <= 1e-13
    with torch.enable_grad(), pytest.warns(UserWarning, match="gradients"):
        predictions(thrifty).sum().backward()
    assert unet.up_blocks[0].resnets[0].conv1.weight.grad is not None
