"""Running faster must not change a picture: packing, graphs, caches, memory, and `optimize`."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig
from small import small_unet, small_vae
from torch import Tensor, nn

from tiue_core import SplitUNet
from tiue_core.errors import TiueError
from tiue_core.optimize import attention, winograd
from tiue_core.optimize.cpu import keep_pages
from tiue_core.optimize.graphs import Graphs
from tiue_core.optimize.kernels import Packed
from tiue_core.optimize.packed import (
    PackedConv,
    can_pack,
    pack,
    unpack,
)
from tiue_core.optimize.winograd import Form
from tiue_core.pipelines.memory import in_batches
from tiue_core.pipelines.text_cache import Embeddings
from tiue_core.shared import SharedUNet
from tiue_core.shared.doubling import double_cheaply, double_plainly


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


# --- optimize ------------------------------------------------------------------------------


def latents(pipe: Any, width: int = 128, height: int = 128, **options: Any) -> Tensor:
    """Large enough: where a normalization group has two numbers, rounding is blown up."""
    size = {"width": width, "height": height}
    return pipe(["a cat", "a dog"], seed=3, output_type="latent", **size, **options).images


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_pictures(pipe: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents(pipe)
    pixels = pipe("a cat", seed=3, output_type="pt").images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizing does not pay")
        keeping_whatever_it_takes(monkeypatch)
        said: list[tuple[int, int, str]] = []
        assert pipe.optimize(layout=layout, progress=lambda *step: said.append(step)) is pipe
    assert isinstance(pipe.split_unet, SharedUNet)
    assert off(latents(pipe), expected) <= 1e-5
    assert (pipe("a cat", seed=3, output_type="pt").images - pixels).abs().max() <= 1 / 255
    wide = latents(pipe, width=136, height=88, chunk=3)  # a size and a chunk never seen
    assert [done for done, total, _ in said if done < total] == list(range(len(said)))

    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "conv1", "conv_shortcut"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    styled = latents(pipe)
    assert off(styled, expected) > 1e-3
    pipe.plain()
    assert type(pipe.split_unet) is SplitUNet
    assert off(styled, latents(pipe)) <= 1e-5
    pipe.unet.disable_adapters()
    assert off(latents(pipe, width=136, height=88), wide) <= 1e-5


def keeping_whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every saving, paying or not: small models are not what they are for."""
    from tiue_core.optimize import optimize
    from tiue_core.shared import unet

    monkeypatch.setattr(unet, "not_worth_it", lambda found: set())
    ticks = iter(range(100, 0, -1))
    monkeypatch.setattr(optimize, "clock", lambda *_: next(ticks))


def test_what_does_not_pay_is_undone(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiue_core.optimize import optimize

    ticks = iter(range(100))
    monkeypatch.setattr(optimize, "clock", lambda *_: next(ticks))
    with pytest.warns(UserWarning, match="does not pay"):
        pipe.optimize()
    assert type(pipe.split_unet) is SplitUNet
    assert not any("forward" in vars(module) for module in pipe.unet.modules())
    assert pipe.unet.conv_in.weight.is_contiguous()


def test_slow_parts_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is timed both ways; the thrifty way is made to lose in some."""
    from tiue_core.shared import measure

    losers = {"skips.0", "attention.1", "upsampling.2"}
    unet = SharedUNet(small_unet())
    noise, prompts = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    with torch.no_grad():
        features = unet.encode(noise, 751, prompts)
        before = unet.decode(features, [751, 1], prompts)
        monkeypatch.setattr(
            measure, "clock", lambda function, *_: 1.0 if function() is not None else 0
        )
        found = unet.measure(features, [751, 1], prompts)
        assert {name.split(".")[0] for name in found} == {"skips", "attention", "upsampling"}
        unet.without = losers
        unet._decoder = None
        names = {part.name: type(part).__name__ for part in unet.decoder().parts()}
        assert {name for name, kind in names.items() if kind.startswith("Plain")} == losers
        assert off(unet.decode(features, [751, 1], prompts), before) <= 1e-5


def test_bad_settings_are_one_line(pipe: Any) -> None:
    with pytest.raises(ValueError, match="give one of contiguous, channels_last"):
        pipe.optimize(layout="diagonal")
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipe.optimize(batch_size=0)


@pytest.mark.slow
def test_compiled_and_frozen(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents(pipe)
    keeping_whatever_it_takes(monkeypatch)
    pipe.optimize(compile=True, layout="channels_last", pack=False)
    assert off(latents(pipe), expected) <= 1e-5
    assert off(latents(pipe, width=136), latents(pipe.plain(), width=136)) <= 1e-5


# --- on a CPU ------------------------------------------------------------------------------


def test_packed_weights_convolve_the_same() -> None:
    assert can_pack()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 8, 2))
    plain = nn.Sequential(*model)
    x = torch.randn(2, 8, 12, 10)
    with torch.no_grad():
        expected = plain(x)
        pack(model)
        assert all("forward" in vars(layer) for layer in model)
        assert off(model(x), expected) <= 1e-6
        assert off(model(x.to(memory_format=torch.channels_last)), expected) <= 1e-6
        assert off(model(x[:, :, :7]), torch.nn.functional.conv2d(
            model[1](model[0](x[:, :, :7])), model[2].weight, model[2].bias)) <= 1e-6  # fmt: skip
        model[1].weight.mul_(2)
        changed = model(x)
    with_gradients = model(x)
    assert with_gradients.requires_grad and off(with_gradients.detach(), changed) <= 1e-6
    unpack(model)
    assert not any("forward" in vars(layer) for layer in model)
    assert off(model(x).detach(), changed) <= 1e-6
    assert off(changed, expected) > 0.1


SIZES = [(1, 1), (2, 2), (4, 6), (16, 16), (8, 40), (64, 64), (4, 100), (132, 8)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("form", [Form(m, doubled) for m in (2, 4) for doubled in (False, True)])
def test_winograd_is_the_convolution(size: tuple[int, int], biased: bool, form: Form) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 3, padding=1, bias=biased).double()
    x = torch.randn(3, 24, *size, dtype=torch.float64)
    kernels = winograd.transformed(conv.weight, form)
    if any(side % form.step for side in size):
        with pytest.raises(ValueError, match="not of whole tiles"):
            winograd.convolve(x, kernels, conv.bias, form)
        return

    def plain(x: Tensor) -> Tensor:
        return conv(nn.functional.interpolate(x, scale_factor=2.0) if form.doubled else x)

    with torch.no_grad():
        exact = plain(x)
        for given in (x, x.to(memory_format=torch.channels_last)):
            assert off(winograd.convolve(given, kernels, conv.bias, form), exact) <= 1e-14
        conv.float()
        kernels = winograd.transformed(conv.weight, form)
        found = winograd.convolve(x.float(), kernels, conv.bias, form)
    assert off(found.double(), exact) <= 4e-6


def test_multiplications_are_fewer() -> None:
    weight = torch.randn(3, 2, 3, 3)
    products = {Form(2): 16, Form(4): 36, Form(2, True): 9, Form(4, True): 25}
    for form, n in products.items():
        assert winograd.transformed(weight, form).shape == (n, 2, 3)


def test_forms_suit_size_and_dtype() -> None:
    sides = {(8, 12): 4, (8, 10): 2, (6, 4): 2, (8, 7): 0, (3, 4): 0}
    for (H, W), m in sides.items():
        x = torch.zeros(1, 1, H, W)
        assert winograd.fitting(x) == (Form(m) if m else None)
        assert winograd.fitting(x.bfloat16()) == (Form(2) if m else None)
    assert winograd.fitting(torch.zeros(1, 1, 6, 4), doubled=True) == Form(4, True)
    assert winograd.fitting(torch.zeros(1, 1, 3, 4), doubled=True) == Form(2, True)


def choosing(monkeypatch: pytest.MonkeyPatch, which: int) -> list[str]:
    """Every layer takes its first (0) or last (-1) way; returns those that are run."""
    ran: list[str] = []
    run = Packed._run
    monkeypatch.setattr(Packed, "found", {})
    monkeypatch.setattr(Packed, "_fastest", lambda layer, x: layer.ways(x)[which])
    monkeypatch.setattr(Packed, "_run", lambda layer, way, x: ran.append(way) or run(layer, way, x))
    return ran


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_a_transformer_is_the_same(
    which: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = BasicTransformerBlock(32, 4, 8, cross_attention_dim=24, activation_fn="geglu").eval()
    x, context = torch.randn(2, 16, 32), torch.randn(2, 5, 24)
    bound = 1e-6 if dtype == torch.float32 else 2e-2
    monkeypatch.setattr(attention, "LONG", 16)
    monkeypatch.setattr(attention, "QUERIES", 6)  # the last piece is shorter
    with torch.no_grad():
        expected = block(x, encoder_hidden_states=context)
        block.to(dtype)
        ran = choosing(monkeypatch, which)
        pack(block)
        given = x.to(dtype), context.to(dtype)
        found = block(given[0], encoder_hidden_states=given[1])
        assert off(found.float(), expected) <= bound
        ways = {"plain"} if which == 0 else {"blocked", "fused"}
        assert set(ran) >= ways and ("pieces" in ran) == (which == -1 and dtype != torch.float32)
        block.ff.net[0].proj.weight.mul_(2)
        block.attn1.to_v.weight.mul_(2)
        changed = block(given[0], encoder_hidden_states=given[1])
        unpack(block)
        assert not any("forward" in vars(module) for module in block.modules())
        again = block(given[0], encoder_hidden_states=given[1])
        assert off(changed.float(), again.float()) <= bound
        assert off(changed.float(), found.float()) > 0.03


def test_pieces_are_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 1030, 8, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert off(attention.attend(q, k, v), expected.transpose(1, 2).flatten(2)) <= 1e-14


def test_a_way_is_chosen_once_for_layers_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
    model = nn.Sequential(*convs, nn.Conv2d(8, 8, 3, padding=1, stride=2))
    large, small, odd = (torch.randn(1, 8, side, side) for side in (16, 8, 7))
    clocked: list[int] = []
    monkeypatch.setattr(Packed, "found", {})
    with torch.no_grad():
        expected = [model(x) for x in (large, small, odd)]
        pack(model)

        def clock(function: Any, *_: Any, **__: Any) -> float:
            function()
            clocked.append(1)
            return 0.5 ** len(clocked)  # whatever comes last wins: Winograd's form

        monkeypatch.setattr("tiue_core.optimize.kernels.clock", clock)
        for _ in range(2):
            for x, wanted in zip((large, small, odd), expected, strict=True):
                assert off(model(x), wanted) <= 1e-5
        assert len(clocked) == 8  # two ways, sizes and layouts, for three layers alike
        packs: list[Any] = [conv.forward for conv in convs]
        assert [set(one._prepared) for one in packs] == [{Form(4), "blocked"}] * 3
        convs[0].weight.mul_(2)
        convs[0].bias.mul_(2)
        before = nn.functional.conv2d(large, convs[0].weight, convs[0].bias, padding=1)
        assert off(convs[0](large), before) <= 1e-5
    assert not model[3].forward.winograd  # type: ignore[attr-defined]
    assert isinstance(model[3].forward, PackedConv)


def test_pages_can_be_asked() -> None:
    assert keep_pages() == keep_pages(False)


def test_an_autoencoder_doubles_cheaply() -> None:
    torch.manual_seed(0)
    vae = small_vae().double()
    z = torch.randn(1, 4, 6, 5).double()
    with torch.no_grad():
        expected = vae.decode(z).sample
        double_cheaply(vae)
        assert sum("forward" in vars(module) for module in vae.modules()) == 3
        assert off(vae.decode(z).sample, expected) <= 1e-13
        weight = vae.decoder.up_blocks[0].upsamplers[0].conv.weight
        weight.mul_(1.1)
        changed = vae.decode(z).sample
        double_plainly(vae)
        assert off(vae.decode(z).sample, changed) <= 1e-13
        assert off(changed, expected) > 1e-3


# --- graphs --------------------------------------------------------------------------------


class Recorded:
    """What a graph is, without a GPU: fixed inputs, replayed."""

    made = 0

    def __init__(self, function: Any, inputs: list[Tensor], call: Any, pool: Any) -> None:
        Recorded.made += 1
        self.function, self.call = function, call
        self.inputs = [x.clone() for x in inputs]

    def __call__(self, inputs: list[Tensor]) -> Any:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.call(self.inputs)


def double(x: Tensor, pair: tuple[Tensor, ...], factor: int | None) -> Tensor:
    return x * (factor or 2) + pair[0]


def test_one_graph_per_shape_and_setting() -> None:
    Recorded.made = 0
    graphs = Graphs(limit=3, capture=Recorded)
    for n, factor, made in ((2, None, 1), (3, None, 2), (2, None, 2), (2, 5, 3), (2, 5, 3)):
        x, y = torch.randn(n), torch.randn(n)
        assert torch.equal(graphs(double, x, (y,), factor), x * (factor or 2) + y)
        assert Recorded.made == made
    graphs(double, torch.ones(2), (torch.ones(2),), 5, state=("other weights",))
    assert Recorded.made == 4 and len(graphs) == 3
    graphs(double, torch.ones(3), (torch.ones(3),), None)  # was the oldest, so made anew
    assert Recorded.made == 5
    graphs(double, torch.ones(2), (torch.ones(2),), None)
    assert Recorded.made == 6 and len(graphs) == 3


def test_what_cannot_be_captured_runs_and_says_so_once() -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(capture=refuse)
    x = torch.ones(2)
    with pytest.warns(UserWarning, match="stream is capturing") as said:
        for _ in range(3):
            assert torch.equal(graphs(double, x, (x,), 3), 4 * x)
    assert len(said) == 1


def test_a_pipeline_through_graphs(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents(pipe)
    keeping_whatever_it_takes(monkeypatch)
    pipe.optimize(layout="contiguous")
    pipe._optimized.graphs = graphs = Graphs(capture=Recorded)
    Recorded.made = 0
    assert off(latents(pipe), expected) <= 1e-5
    assert Recorded.made == len(graphs) == 2  # encoder and decoder
    assert off(latents(pipe), expected) <= 1e-5
    assert Recorded.made == 2
    pipe("a cat", seed=3)
    assert Recorded.made == 5  # another batch, and the autoencoder
    pipe.unet.conv_in.weight.data = 2 * pipe.unet.conv_in.weight.data
    other = latents(pipe)
    assert Recorded.made == 7 and off(other, expected) > 1e-3


# --- memory and caches ---------------------------------------------------------------------


def test_memory_runs_out_by_chunks_then_images_then_a_line() -> None:
    tried = []

    def paint(images: range, chunk: int) -> str:
        tried.append((len(images), chunk))
        if len(images) * chunk > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: no memory")
        return f"{images.start}-{images.stop}"

    assert [done for _, done in in_batches(5, 4, 4, paint)] == ["0-2", "2-4", "4-5"]
    assert tried == [(4, 4), (4, 2), (4, 1), (2, 1), (2, 1), (1, 1)]

    def never(images: range, chunk: int) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TiueError, match="give a smaller width and height"):
        list(in_batches(5, 4, 4, never))

    def broken(images: range, chunk: int) -> str:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(in_batches(5, 4, 4, broken))


def test_a_pipeline_out_of_memory_goes_on(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = latents(pipe)
    decode = SplitUNet._decode

    def narrow(self: Any, features: Any, times: Tensor, *rest: Any) -> Tensor:
        if len(times) * len(features.mid) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, features, times, *rest)

    monkeypatch.setattr(SplitUNet, "_decode", narrow)
    assert off(latents(pipe), expected) <= 1e-5


def test_prompts_are_encoded_once() -> None:
    asked: list[list[str]] = []
    encoder = nn.Linear(2, 2)

    def encode(texts: list[str]) -> Tensor:
        asked.append(texts)
        return torch.stack([torch.full((3, 2), float(len(text))) for text in texts])

    embeddings = Embeddings(limit=2)
    with torch.no_grad():
        a = embeddings(["a", "bb", "a"], encode, encoder)
        assert a[:, 0, 0].tolist() == [1, 2, 1] and asked == [["a", "bb"]]
        assert embeddings(["bb", "ccc"], encode, encoder)[:, 0, 0].tolist() == [2, 3]
        assert asked[1:] == [["ccc"]]
        embeddings(["a"], encode, encoder)  # the limit dropped it
        assert asked[2:] == [["a"]]
        encoder.weight.mul_(2)
        embeddings(["a"], encode, encoder)
        embeddings(["a"], encode, encoder, "another device")
        encoder.weight.data += 1
        embeddings(["a"], encode, encoder, "another device")
    embeddings(["a"], encode, encoder, "another device")  # with gradients
    assert asked[3:] == [["a"]] * 4
