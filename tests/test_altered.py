"""What people set on a model, exchange in it or hang on it beside its weights is painted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from tiue_core import TiuePipeline
from tiue_core.export.write import weights_hash
from tiue_core.optimize.graphs import Graphs
from tiue_core.optimize.optimize import Optimized
from tiue_core.shared.altered import settings
from tiue_core.shared.layers import as_written


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return TiuePipeline.from_pretrained(helpers.make_student(tmp_path / "student"))


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """What is changed for a whole process, until a test ends."""
    hooks = everywhere._global_forward_hooks
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    hooks.clear()


def of(model: nn.Module, kind: type) -> list[Any]:
    return [module for module in model.modules() if type(module) is kind]


def epsilon(pipe: Any, patch: Any) -> None:
    for norm in of(pipe.unet, nn.GroupNorm):
        norm.eps = 0.5


def groups(pipe: Any, patch: Any) -> None:
    for norm in of(pipe.unet.up_blocks, nn.GroupNorm):
        norm.num_groups = 16


def dilated(pipe: Any, patch: Any) -> None:
    """For pictures larger than a model was trained at, without repetition."""
    for conv in (*of(pipe.unet, nn.Conv2d), *of(pipe.vae.decoder, nn.Conv2d)):
        if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
            conv.dilation = conv.padding = (2, 2)


def last_convolution(pipe: Any, patch: Any) -> None:
    pipe.unet.conv_out = nn.Conv2d(32, 4, 3, padding=1)


def last_activation(pipe: Any, patch: Any) -> None:
    pipe.unet.conv_act = nn.ReLU()


def block(pipe: Any, patch: Any) -> None:
    """Of another's, such as a merge by blocks."""
    other = copy.deepcopy(pipe.unet.up_blocks[1])
    for weight in other.parameters():
        weight.data *= 1.5
    pipe.unet.up_blocks[1] = other


def times(pipe: Any, patch: Any) -> None:
    pipe.unet.time_proj.flip_sin_to_cos = False


def times_by_method(pipe: Any, patch: Any) -> None:
    own = pipe.unet.get_time_embed
    pipe.unet.get_time_embed = lambda sample, timestep: own(sample, timestep) * 0.5


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def dropouts_place(pipe: Any, patch: Any) -> None:
    for module in pipe.unet.modules():
        if "dropout" in module._modules:
            module.dropout = Half()


def every_module(pipe: Any, patch: Any) -> None:
    def louder(module: nn.Module, _: Any, out: Any) -> Any:
        return 1.5 * out if isinstance(module, nn.GroupNorm | nn.LayerNorm) else None

    everywhere.register_module_forward_hook(louder)


def by_class(kind: type, name: str = "forward") -> Callable[[Any, Any], None]:
    """A method replaced for all of a class, as extensions do."""

    def alter(pipe: Any, patch: Any) -> None:
        own = getattr(kind, name)
        patch.setattr(kind, name, lambda *given, **named: 1.5 * own(*given, **named))

    alter.__name__ = f"all of {kind.__name__}"
    return alter


CLASSES = [BasicTransformerBlock, Attention, GEGLU, nn.Linear, nn.Conv2d]


def image_prompt(pipe: Any, patch: Any) -> None:
    """An IP-Adapter's processors; the prompt's last tokens stand for the picture's."""
    torch.manual_seed(0)
    processors = dict(pipe.unet.attn_processors)
    for name in processors:
        if "attn2" in name:
            layer = pipe.unet.get_submodule(name.removesuffix(".processor"))
            width, cross = layer.to_q.in_features, layer.to_k.in_features
            processors[name] = IPAdapterAttnProcessor2_0(width, cross, num_tokens=(4,), scale=1.0)
    pipe.unet.set_attn_processor(processors)


ALTERED: list[Any] = [epsilon, groups, dilated, last_convolution, last_activation, block, times]
ALTERED += [image_prompt, times_by_method, dropouts_place, every_module, *map(by_class, CLASSES)]
ALTERED += [by_class(AttnProcessor2_0, "__call__"), by_class(nn.Conv2d, "_conv_forward")]


def picture(pipe: Any) -> Tensor:
    return pipe("a cat", seed=3, output_type="pt").images


def afresh(pipe: Any) -> Tensor:
    """As PyTorch paints it that has seen nothing before."""
    with as_written():
        return picture(TiuePipeline(**pipe.components))


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("alter", ALTERED, ids=lambda alter: alter.__name__)
@pytest.mark.filterwarnings("ignore:.*savings", "ignore:You have passed a tensor")
def test_what_is_set_on_a_model_is_painted(pipe: Any, patch: Any, alter: Any, first: bool) -> None:
    """By prepared layers and shared decoders, which are made before it or after."""
    before = picture(pipe)

    def optimize() -> None:
        with torch.no_grad():
            made = Optimized(pipe, savings=True, pack=True, graphs=False, compile=False)
        pipe._optimized = made
        picture(pipe)

    if first:
        alter(pipe, patch)
    optimize()
    if not first:
        alter(pipe, patch)
    painted, wanted = picture(pipe), afresh(pipe)
    assert (wanted - before).abs().max() > 1e-3
    assert (painted - wanted).abs().max() <= 1e-5


def softer(pipe: Any, patch: Any) -> None:
    for norm in of(pipe.text_encoder, nn.LayerNorm):
        norm.eps = 0.5


def every_text(pipe: Any, patch: Any) -> None:
    (kind,) = {type(m) for m in pipe.text_encoder.modules() if type(m).__name__ == "CLIPMLP"}
    by_class(kind)(pipe, patch)


def attention(pipe: Any, patch: Any) -> None:
    own = F.scaled_dot_product_attention
    patch.setattr(
        F, "scaled_dot_product_attention", lambda q, *more, **named: own(2 * q, *more, **named)
    )


@torch.no_grad()
@pytest.mark.parametrize("alter", [softer, every_text, every_module, attention])
def test_a_remembered_prompt_is_forgotten(pipe: Any, patch: Any, alter: Any) -> None:
    before = pipe.encode_prompt(["a cat"])
    alter(pipe, patch)
    wanted = TiuePipeline(**pipe.components).encode_prompt(["a cat"])
    assert torch.equal(pipe.encode_prompt(["a cat"]), wanted) and not torch.equal(before, wanted)


@torch.no_grad()
def test_nothing_is_remembered_with_a_hook(pipe: Any) -> None:
    """What it answers may be another thing each time."""
    calls: list[int] = []

    def louder(module: nn.Module, given: Any, out: Any) -> Any:
        calls.append(1)
        return (out[0] * len(calls), *out[1:])

    pipe.text_encoder.register_forward_hook(louder)
    once, twice = (pipe.encode_prompt(["a cat"]) for _ in range(2))
    assert torch.equal(2 * once, twice)


class Replayed:
    """A CUDA graph's ways without a GPU: it answers what the function answered when it was made."""

    def __init__(self, function: Any, inputs: list[Tensor], call: Any, pool: Any) -> None:
        self.output = call(inputs)

    def __call__(self, inputs: list[Tensor]) -> Any:
        return self.output


def new_parameter(pipe: Any, patch: Any) -> None:
    pipe.unet.conv_in.weight = nn.Parameter(pipe.unet.conv_in.weight * 1.5)


def another_autoencoder(pipe: Any, patch: Any) -> None:
    pipe.vae = type(pipe.vae).from_config(pipe.vae.config).eval()
    pipe("a cat", seed=3, output_type="pt")
    for weight in pipe.vae.parameters():
        weight.data = weight.data * 1.5


@pytest.mark.parametrize("alter", [epsilon, last_convolution, new_parameter, another_autoencoder])
def test_a_captured_graph_is_captured_again(pipe: Any, patch: Any, alter: Any) -> None:
    run = Optimized(pipe, savings=True, pack=False, graphs=True, compile=False)
    pipe._optimized, run.graphs = run, Graphs(capture=Replayed)
    before = picture(pipe)
    assert torch.equal(picture(pipe), before) and len(run.graphs) == 3
    alter(pipe, patch)
    painted = picture(pipe)
    assert (painted - before).abs().max() > 1e-3
    assert (painted - afresh(pipe)).abs().max() <= 1e-5


def test_an_optimized_model_can_be_copied(pipe: Any) -> None:
    """As who keeps an average of weights does; what is prepared stays behind."""
    with torch.no_grad():
        pipe._optimized = Optimized(pipe, savings=True, pack=True, graphs=False, compile=False)
    before = picture(pipe)
    pipe.unet = copy.deepcopy(pipe.unet)
    assert (picture(pipe) - before).abs().max() <= 1e-5


def test_a_graph_is_named_by_what_is_set_too(pipe: Any) -> None:
    """A model as its class makes it of its config adds nothing: graphs that are shipped stay."""
    models = (pipe.text_encoder, pipe.unet, pipe.vae)
    assert [settings(model) for model in models] == [[]] * 3
    names = {weights_hash(pipe)}
    pipe.unet.conv_norm_out.eps = 0.5
    assert any("conv_norm_out.eps 0.5" in line for line in settings(pipe.unet))
    names.add(weights_hash(pipe))
    pipe.vae.decoder.conv_act = nn.ReLU()
    names.add(weights_hash(pipe))
    pipe.load_lora_weights(helpers.lora_tensors(), adapter_name="a")
    for strength in (1.0, 0.5):
        pipe.set_adapters(["a"], [strength])
        names.add(weights_hash(pipe))
    assert len(names) == 5
