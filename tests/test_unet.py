"""The split UNet against the stock forward, run K times one after the other.

The reference shares the encoder by other means than the code under test: forward hooks record what
conv_in, the down blocks and the mid block gave in the first call, and put it in the place of what
they give in the later ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig
from small import TEXT_WIDTH, small_unet

from tiue_core import SplitUNet

B, N = 3, 7
TIMESTEPS = [751, 501, 251, 1]
SD15 = {"layers_per_block": 2, "block_out_channels": (32, 64, 96, 96)}
SD21 = {**SD15, "attention_head_dim": (2, 4, 6, 6), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 6),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
SHAPES = {"SD1.5": SD15, "SD2.1": SD21, "SDXL": SDXL}


@contextmanager
def shared_encoder(unet: torch.nn.Module) -> Iterator[None]:
    """Every call after the first sees the encoder features of the first."""
    recorded: dict[torch.nn.Module, Any] = {}

    def copy(output):  # FreeU writes into what it is given
        return output.clone() if torch.is_tensor(output) else type(output)(map(copy, output))

    def replay(module, _inputs, output):
        return copy(recorded.setdefault(module, copy(output)))

    parts = [unet.conv_in, *unet.down_blocks, unet.mid_block]
    handles = [part.register_forward_hook(replay) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reference(unet, noise, prompts, timesteps=TIMESTEPS, **conditions) -> torch.Tensor:
    """(K, B, C, H, W) by K stock forwards; ``prompts`` is one tensor, or one per timestep."""
    prompts = prompts if isinstance(prompts, list) else [prompts] * len(timesteps)
    with shared_encoder(unet):
        return torch.stack(
            [
                unet(noise, t, encoder_hidden_states=prompt, **conditions).sample
                for t, prompt in zip(timesteps, prompts, strict=True)
            ]
        )


def make(
    shape: str, size: tuple[int, int] = (16, 24)
) -> tuple[Any, torch.Tensor, torch.Tensor, dict]:
    torch.manual_seed(0)
    unet = small_unet(**SHAPES[shape])
    noise, prompt = torch.randn(B, 4, *size), torch.randn(B, N, TEXT_WIDTH)
    conditions: dict[str, Any] = {}
    if shape == "SDXL":
        added = {"text_embeds": torch.randn(B, 16), "time_ids": torch.rand(B, 6) * 512}
        conditions["added_cond_kwargs"] = added
    return unet, noise, prompt, conditions


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("size", [(16, 24), (13, 18), (9, 7)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_equals_the_stock_forward_with_shared_features(shape, size):
    unet, noise, prompt, conditions = make(shape, size)
    split = SplitUNet(unet)
    features = split.encode(noise, TIMESTEPS[0], prompt, **conditions)
    predictions = split.decode(features, TIMESTEPS, prompt, **conditions)
    expected = reference(unet, noise, prompt, **conditions)
    assert predictions.shape == (4, B, 4, *size)
    assert difference(predictions, expected) <= 1e-5
    # Sharing is not the plain forward: the second timestep's own features would differ.
    stock = unet(noise, TIMESTEPS[1], encoder_hidden_states=prompt, **conditions).sample
    assert difference(predictions[1], stock) > 1e-4


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
@torch.no_grad()
def test_chunks_change_nothing(chunk):
    unet, noise, prompt, conditions = make("SDXL")
    split = SplitUNet(unet)
    features = split.encode(noise, torch.tensor(751), prompt, **conditions)
    timesteps = torch.tensor(TIMESTEPS)
    whole = split.decode(features, timesteps, prompt, **conditions)
    parts = split.decode(features, timesteps, prompt, chunk=chunk, **conditions)
    assert difference(whole, parts) <= 1e-5
    assert difference(whole, split(noise, timesteps, prompt, chunk=chunk, **conditions)) <= 1e-5
    with pytest.raises(ValueError, match="chunk is 0"):
        split.decode(features, timesteps, prompt, chunk=0)


@pytest.mark.parametrize("chunk", [None, 3])
@torch.no_grad()
def test_a_prompt_for_each_timestep(chunk):
    unet, noise, prompt, _ = make("SD2.1")
    prompts = [prompt, *torch.randn(3, B, N, TEXT_WIDTH)]
    expected = reference(unet, noise, prompts)
    split = SplitUNet(unet)
    features = split.encode(noise, TIMESTEPS[0], prompt)
    for given in (torch.stack(prompts), torch.cat(prompts)):
        assert difference(split.decode(features, TIMESTEPS, given, chunk=chunk), expected) <= 1e-5


@torch.no_grad()
def test_other_conditions():
    torch.manual_seed(0)
    unet = small_unet(num_class_embeds=5, time_cond_proj_dim=8, center_input_sample=True)
    noise, prompt = torch.randn(B, 4, 8, 16), torch.randn(B, N, TEXT_WIDTH)
    conditions = {
        "class_labels": torch.tensor([0, 4, 2]),
        "timestep_cond": torch.randn(B, 8),
        "encoder_attention_mask": torch.arange(N).expand(B, N) < torch.tensor([[2], [5], [7]]),
    }
    expected = reference(unet, noise, prompt, **conditions)
    assert difference(SplitUNet(unet)(noise, TIMESTEPS, prompt, **conditions), expected) <= 1e-5
    with pytest.raises(TypeError, match="unheard_of"):
        SplitUNet(unet)(noise, TIMESTEPS, prompt, unheard_of=1)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@torch.no_grad()
def test_lora_reaches_both_halves(strength):
    unet, noise, prompt, _ = make("SD1.5")
    split = SplitUNet(unet)
    plain = split.encode(noise, 751, prompt)
    bare = split.decode(plain, TIMESTEPS, prompt)
    # init_lora_weights=False: random adapters instead of ones that start at zero
    targets = ["to_q", "to_k", "to_v", "conv1"]
    unet.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    scale = {"cross_attention_kwargs": {"scale": strength}}
    features = split.encode(noise, 751, prompt, **scale)
    predictions = split.decode(features, TIMESTEPS, prompt, **scale)
    expected = reference(unet, noise, prompt, **scale)
    assert difference(predictions, expected) <= 1e-5 * expected.abs().max().item()
    assert difference(features.mid, plain.mid) > 1e-3
    assert difference(split.decode(plain, TIMESTEPS, prompt, **scale), bare) > 1e-3
    unet.disable_adapters()
    assert difference(split(noise, TIMESTEPS, prompt), bare) == 0


@torch.no_grad()
def test_controlnet_residuals_enter_the_shared_encoder():
    unet, noise, prompt, _ = make("SD1.5")
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=3).eval()
    for parameter in controlnet.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # its zero convolutions start at zero
    hint = torch.rand(B, 3, 16 * 8, 24 * 8)
    down, mid = controlnet(noise, 751, prompt, controlnet_cond=hint, return_dict=False)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    expected = reference(unet, noise, prompt, **residuals)
    split = SplitUNet(unet)
    features = split.encode(noise, 751, prompt, **residuals)
    assert difference(split.decode(features, TIMESTEPS, prompt), expected) <= 1e-5
    assert difference(split(noise, TIMESTEPS, prompt, **residuals), expected) <= 1e-5
    assert difference(split(noise, TIMESTEPS, prompt), expected) > 1e-3
    with pytest.raises(ValueError, match="1 ControlNet residuals for 12 skip features"):
        split.encode(noise, 751, prompt, down_block_additional_residuals=down[:1])


@torch.no_grad()
def test_t2i_adapter_residuals():
    unet, noise, prompt, _ = make("SD1.5")
    sizes = [(32, 16, 24), (64, 8, 12), (96, 4, 6), (96, 2, 3)]
    residuals = [torch.randn(B, *size) for size in sizes]
    name = "down_intrablock_additional_residuals"
    expected = unet(noise, 751, encoder_hidden_states=prompt, **{name: list(residuals)}).sample
    predictions = SplitUNet(unet)(noise, [751], prompt, **{name: residuals})
    assert difference(predictions[0], expected) <= 1e-5
    assert len(residuals) == 4  # the stock forward empties the caller's list, we do not


@torch.no_grad()
def test_features_survive_in_place_decoders():
    unet, noise, prompt, _ = make("SD1.5")
    split = SplitUNet(unet)
    features = split.encode(noise, 751, prompt)
    kept = [tensor.clone() for tensor in (features.mid, *features.skips)]
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)  # scales hidden states in place
    for timesteps in ([751], TIMESTEPS):  # one timestep is where a view would alias
        first = split.decode(features, timesteps, prompt)
        assert torch.equal(first, split.decode(features, timesteps, prompt))
    assert difference(first, reference(unet, noise, prompt)) <= 1e-5
    for before, after in zip(kept, (features.mid, *features.skips), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("shape", ["SD2.1", "SDXL"])
def test_gradients_with_and_without_checkpointing(shape):
    unet, noise, prompt, conditions = make(shape, (9, 12))

    def gradients(predictions: torch.Tensor) -> list[torch.Tensor]:
        unet.zero_grad()
        predictions.square().mean().backward()
        return [parameter.grad.clone() for parameter in unet.parameters()]

    split = SplitUNet(unet)
    expected = gradients(reference(unet, noise, prompt, **conditions))
    plain = gradients(split(noise, TIMESTEPS, prompt, **conditions))
    unet.enable_gradient_checkpointing()
    checkpointed = gradients(split(noise, TIMESTEPS, prompt, **conditions))
    scale = max(gradient.abs().max().item() for gradient in expected)
    for a, b, c in zip(expected, plain, checkpointed, strict=True):
        assert difference(a, b) <= 1e-5 * max(scale, 1)
        assert difference(b, c) <= 1e-6 * max(scale, 1)


@torch.no_grad()
def test_noise_and_prompt_are_brought_to_the_dtype_of_the_unet():
    unet, noise, prompt, _ = make("SD1.5")
    full = SplitUNet(unet)(noise, TIMESTEPS, prompt)
    half = SplitUNet(unet.to(torch.bfloat16))(noise, TIMESTEPS, prompt)
    assert half.dtype == torch.bfloat16
    assert difference(half.float(), full) < 0.1 * full.abs().max().item()


def test_what_cannot_be_split_is_refused_in_one_line():
    level = {"block_out_channels": (32, 32), "down_block_types": ("DownBlock2D",) * 2}
    unconditional = UNet2DModel(sample_size=8, up_block_types=("UpBlock2D",) * 2, **level)
    for model in (unconditional, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="cannot be split") as error:
            SplitUNet(model)
        assert "\n" not in str(error.value)
    assert isinstance(SplitUNet(small_unet()).unet, UNet2DConditionModel)
