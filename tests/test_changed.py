"""Whatever changes a weight is seen: by remembered prompts, derived weights, prepared layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from small import small_tokenizer
from torch import Tensor, nn

from tiue_core import TiuePipeline
from tiue_core.shared.layers import fingerprint


def paint(pipe: Any, side: int = 64) -> Tensor:
    return pipe(["a cat"], seed=1, output_type="latent", width=side, height=side).images


def afresh(pipe: Any) -> Tensor:
    """What a pipeline that remembers nothing paints of the same models."""
    own = {name: value for name, value in pipe.components.items() if value is not None}
    return paint(type(pipe)(**own))


# --- remembered prompts --------------------------------------------------------------------


def row_by_data(pipe: Any, folder: Any) -> None:
    pipe.text_encoder.get_input_embeddings().weight.data[2] = 3.0  # "c", a row in the midst


def swapped_rows(pipe: Any, folder: Any) -> None:
    rows = pipe.text_encoder.get_input_embeddings().weight.data
    rows[[0, 2]] = rows[[2, 0]]


def hook(pipe: Any, folder: Any) -> None:
    pipe.text_encoder.register_forward_hook(lambda m, a, out: (out[0] * 1.5, *out[1:]))


def other_tokenizer(pipe: Any, folder: Any) -> None:
    (folder / "more").mkdir()
    other = small_tokenizer(folder / "more")
    other.add_tokens(["cat"])
    pipe.tokenizer = other
    pipe.text_encoder.resize_token_embeddings(len(other))


def mask(pipe: Any, folder: Any) -> None:
    pipe.text_encoder.config.use_attention_mask = True


def skip_a_layer(pipe: Any, folder: Any) -> None:
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).encoder
    encoder.layers = encoder.layers[:-1]


@pytest.mark.parametrize(
    "change", [row_by_data, swapped_rows, hook, other_tokenizer, mask, skip_a_layer]
)
def test_a_remembered_prompt_is_forgotten(pipe: TiuePipeline, tmp_path: Any, change: Any) -> None:
    before = paint(pipe)
    change(pipe, tmp_path)
    now = paint(pipe)
    assert torch.equal(now, afresh(pipe))
    assert not torch.equal(now, before)


def test_another_embedding_under_the_same_token(pipe: TiuePipeline) -> None:
    def with_token(value: float) -> Tensor:
        pipe.load_textual_inversion({"<a>": torch.full((32,), value)}, token="<a>")
        painted = pipe(["<a>"], seed=1, output_type="latent").images
        pipe.unload_textual_inversion()
        return painted

    one, two = with_token(0.5), with_token(-0.5)
    assert not torch.equal(one, two)
    assert torch.equal(two, with_token(-0.5))


# --- prepared weights ----------------------------------------------------------------------


def fuse(model: Any) -> None:
    torch.manual_seed(2)
    names = ["conv1", "to_q", "conv_shortcut"]
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=names))
    model.fuse_lora(lora_scale=2.0)


def fuse_and_unload(model: Any) -> None:
    fuse(model)
    model.unload_lora()


def by_data(model: Any) -> None:
    model.up_blocks[1].resnets[0].conv1.weight.data[1] += 0.5


def by_numpy(model: Any) -> None:
    model.up_blocks[1].resnets[0].conv2.weight.detach().numpy()[0] += 0.5


def in_place(model: Any) -> None:
    model.down_blocks[1].resnets[0].conv1.weight.mul_(1.5)


def new_data(model: Any) -> None:
    weight = model.mid_block.resnets[0].conv1.weight
    weight.data = weight.data * 1.5


def new_parameter(model: Any) -> None:
    layer = model.mid_block.resnets[0].conv1
    layer.weight = nn.Parameter(layer.weight * 1.5)


def state_dict(model: Any) -> None:
    model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})


def accelerates(model: Any) -> None:
    from accelerate.utils import set_module_tensor_to_device

    name = "up_blocks.1.resnets.0.conv1.weight"
    value = dict(model.named_parameters())[name] * 1.5
    set_module_tensor_to_device(model, name, "cpu", value=value)


def optimizer(model: Any) -> None:
    weight = model.up_blocks[0].resnets[0].conv1.weight
    weight.grad = torch.randn_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()


CHANGES = [fuse, fuse_and_unload, by_data, by_numpy, in_place, new_data, new_parameter, state_dict]
CHANGES += [accelerates, optimizer]


@pytest.mark.parametrize("change", CHANGES)
def test_a_prepared_weight_is_prepared_again(pipe: TiuePipeline, change: Any) -> None:
    """As ``optimize`` leaves a CPU's pipeline, without its measuring: everything prepared."""
    from tiue_core.optimize.optimize import Optimized

    pipe._optimized = Optimized(pipe, savings=True, pack=True, graphs=False, compile=False)
    with torch.no_grad():
        before = paint(pipe, 128)  # smaller, and normalization blows rounding up
        change(pipe.unet)
        now = paint(pipe, 128)
        pipe.plain()
        expected = paint(pipe, 128)
    assert (now - before).abs().max() > 1e-3
    assert (now - expected).abs().max() < 2e-4 * expected.abs().max()


@torch.no_grad()
def test_an_autoencoders_doubling_follows_its_weights(pipe: TiuePipeline) -> None:
    from tiue_core.shared.doubling import double_cheaply, double_plainly

    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    double_cheaply(pipe.vae)
    before = pipe.vae.decode(z).sample
    pipe.vae.decoder.up_blocks[0].upsamplers[0].conv.weight.data += 0.05
    now = pipe.vae.decode(z).sample
    double_plainly(pipe.vae)
    wanted = pipe.vae.decode(z).sample
    assert (now - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (now - before).abs().max() > 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_every_bit_counts(layout: Any, dtype: torch.dtype) -> None:
    weight = torch.zeros(3, 5, 3, 3).to(dtype).contiguous(memory_format=layout)
    seen = {fingerprint([weight])}
    for place in range(weight.numel()):
        changed = weight.clone(memory_format=torch.preserve_format)
        changed.flatten().data[place] = 1
        changed.as_strided((changed.numel(),), (1,))[place] = 1
        seen.add(fingerprint([changed]) if not torch.equal(changed, weight) else 0)
    assert 0 not in seen and fingerprint([weight[1:, 1:]]) != fingerprint([weight])


# --- what hangs on attention ---------------------------------------------------------------


def heat_map(unet: Any) -> list[Any]:
    """A hook that keeps what cross-attention's keys saw, as heat maps do."""
    seen: list[Any] = []
    attention = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    attention.to_q.register_forward_hook(lambda m, x, out: seen.append(out.shape))
    return seen


def regional(unet: Any) -> None:
    """A forward that gives every row its own context, as regional prompts do."""
    attention = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    forward = attention.forward

    def by_row(x: Tensor, encoder_hidden_states: Any = None, **more: Any) -> Tensor:
        rows = torch.arange(len(x), dtype=x.dtype)[:, None, None]
        return forward(x, encoder_hidden_states=encoder_hidden_states * (1 + rows), **more)

    attention.forward = by_row


class Doubled:
    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        rows = torch.arange(len(x), dtype=x.dtype)[:, None, None]
        return x * rows


def processor(unet: Any) -> None:
    unet.up_blocks[2].attentions[0].transformer_blocks[0].attn1.processor = Doubled()


@pytest.mark.parametrize("patch", [heat_map, regional, processor])
def test_what_hangs_on_attention_sees_what_it_saw(pipe: TiuePipeline, patch: Any) -> None:
    from tiue_core.optimize.optimize import Optimized

    two = {"seed": 1, "output_type": "latent"}
    pipe._optimized = Optimized(pipe, savings=True, pack=False, graphs=False, compile=False)
    pipe(["a", "b"], **two)
    seen = patch(pipe.unet)
    with pytest.warns(UserWarning, match="without savings"):
        now = pipe(["a", "b"], **two).images
    shapes = list(seen or [])
    pipe.plain()
    expected = pipe(["a", "b"], **two).images
    assert (now - expected).abs().max() < 1e-5 * expected.abs().max()
    assert shapes == list(seen or [])[len(shapes) :]
