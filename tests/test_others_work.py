"""What people hang on a pipeline beside LoRAs: tomesd, offloading, embeddings of their own."""

from __future__ import annotations

import warnings
from itertools import cycle
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from safetensors.torch import save_file
from torch import Tensor, nn

from tiue_core import SplitUNet, TiuePipeline, students
from tiue_core.errors import TiueError
from tiue_core.optimize.optimize import Optimized, _Trial
from tiue_core.shared import unet as shared_unet
from tiue_core.students.lora import Lora, load_loras


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return helpers.make_student(tmp_path / "student")


@pytest.fixture
def pipe(student: Path) -> Any:
    return students.load(student, device="cpu")


def paint(pipe: Any, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the size
        return pipe("a cat", seed=3, output_type="latent", **options).images


@pytest.fixture(params=[True, False], ids=["sharing pays", "sharing does not pay"])
def pays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Optimizing pays, whatever the processor, and all that is shared does or nothing."""
    times, run = cycle((3.0, 2.0, 1.0)), _Trial.seconds
    monkeypatch.setattr(_Trial, "seconds", lambda *given: (run(*given), next(times))[1])
    none: set[str] = set()
    monkeypatch.setattr(
        shared_unet, "not_worth_it", lambda found: none if request.param else set(found)
    )
    return request.param


@pytest.mark.parametrize("order", ["plain", "before optimize", "after optimize"])
def test_tomesd_merges_tokens_in_both_halves(pipe: Any, order: str, pays: bool) -> None:
    """In float64: a merge is a choice between tokens, and one that float32's last digits make
    is another one on another processor. Whether sharing pays is a matter of the processor, too."""
    tomesd = pytest.importorskip("tomesd")
    square = {"width": 32, "height": 32}
    pipe.to(torch.float64)
    before = paint(pipe, **square)
    if order == "after optimize":
        pipe.optimize("torch", **square)
    tomesd.apply_patch(pipe, ratio=0.5, use_rand=False)
    if order == "before optimize":
        pipe.optimize("torch", **square)
    assert order == "plain" or isinstance(pipe._optimized, Optimized)
    patched = paint(pipe, **square)
    assert (patched - before).abs().max() > 1e-3
    z, words, halves = (
        torch.randn(2, 4, 16, 16, dtype=torch.float64),
        pipe.encode_prompt(["a", "b"]),
        SplitUNet(pipe.unet),
    )
    with torch.no_grad():
        wanted = pipe.unet(z, 601, words).sample
        pipe.unet._tome_info["size"] = None
        made = halves.decode(halves.encode(z, 601, words), [601], words)[0]
    assert (made - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    pipe.plain()
    assert (paint(pipe, **square) - patched).abs().max() <= 1e-5 * patched.abs().max()
    tomesd.remove_patch(pipe)
    assert (paint(pipe, **square) - before).abs().max() <= 1e-5 * before.abs().max()


def wrapped(conv: nn.Conv2d) -> None:
    conv.padding_mode = "circular"


def wrapped_sideways(conv: nn.Conv2d) -> None:
    """As people do it who want it along one side only."""

    def around(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y, x_pad = conv.padding
        x = F.pad(F.pad(x, (x_pad, x_pad, 0, 0), mode="circular"), (0, 0, y, y))
        return F.conv2d(x, weight, bias, conv.stride)

    conv._conv_forward = around  # type: ignore[method-assign]


@pytest.mark.parametrize("wrap", [wrapped, wrapped_sideways])
@pytest.mark.parametrize("order", ["before optimize", "after optimize"])
def test_pictures_that_tile_do_so_optimized(pipe: Any, order: str, wrap: Any, pays: bool) -> None:
    """The usual way to a seamless texture: every convolution's edge is the opposite side."""

    def picture() -> Tensor:
        return pipe("a cat", seed=3, output_type="pt").images

    before = picture()
    if order == "after optimize":
        pipe.optimize("torch", pack=True)
        assert (picture() - before).abs().max() <= 1e-5
    for model in (pipe.unet, pipe.vae):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                wrap(module)
    if order == "before optimize":
        pipe.optimize("torch", pack=True)
    assert isinstance(pipe._optimized, Optimized)
    tiled = picture()
    pipe.plain()
    wanted = picture()
    assert (wanted - before).abs().max() > 0.01
    assert (tiled - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("optimized", ["not", "before", "after"])
def test_weights_that_are_elsewhere_are_fetched(pipe: Any, optimized: str) -> None:
    """accelerate's sequential offload, which leaves "meta" behind; works without a GPU."""
    before = paint(pipe)
    if optimized == "before":
        pipe.optimize("torch")
    for model in (pipe.unet, pipe.vae):
        cpu_offload(model, torch.device("cpu"))
    assert pipe.unet.conv_in.weight.is_meta
    if optimized == "after":
        pipe.optimize("torch")
    for _ in range(2):
        assert (paint(pipe) - before).abs().max() <= 1e-5 * before.abs().max()


def test_nothing_is_merged_into_weights_that_are_elsewhere(pipe: Any, tmp_path: Path) -> None:
    cpu_offload(pipe.unet, torch.device("cpu"))
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    file = tmp_path / "full.safetensors"
    save_file({f"{name}.diff": torch.ones(32, 32, 1, 1)}, file)
    with pytest.raises(TiueError, match="offloaded: load it before"):
        load_loras(pipe, [Lora(file)])


def test_embeddings_and_guidance_must_be_alike(pipe: Any) -> None:
    words = pipe.encode_prompt(["a cat"])
    longer = torch.cat([words] * 3, dim=1)
    options: dict[str, Any] = {"seed": 1, "output_type": "latent", "prompt_embeds": longer}
    assert pipe(**options).images.shape == (1, 4, 8, 8)  # as long prompts come
    with pytest.raises(ValueError, match=r"48 tokens of width 32, the negative prompt's 16 of 32"):
        pipe(**options, guidance_scale=3.0)


def test_a_draft_decoder_is_not_taken_from_where_one_stands(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ./taesd for a pipeline of parts, nor a folder that has the public one's name."""
    from diffusers import AutoencoderTiny
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("taesd", "madebyollin/taesd"):
        AutoencoderTiny().save_pretrained(tmp_path / name)
    for one in (pipe, TiuePipeline(**pipe.components)):
        with pytest.raises(TiueError, match="the draft decoder madebyollin/taesd is not here"):
            one.load_draft()


def forwards_patched(monkeypatch: pytest.MonkeyPatch, pipe: Any, how: str) -> None:
    """What people hang on a whole UNet, whose forward a student never calls."""
    unet, own = pipe.unet, pipe.unet.forward
    if how == "a hook":
        unet.register_forward_hook(lambda module, given, out: (out[0] * 0,))
    elif how == "a hook before":
        unet.register_forward_pre_hook(lambda module, given: None)
    elif how == "a forward":
        unet.forward = lambda *given, **options: own(*given, **options)
    else:
        run = type(unet).forward
        monkeypatch.setattr(type(unet), "forward", lambda *given, **options: run(*given, **options))


@pytest.mark.parametrize("how", ["a hook", "a hook before", "a forward", "a class's forward"])
def test_what_hangs_on_the_whole_unet_and_cannot_act_is_said_once(
    pipe: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = paint(pipe)
    forwards_patched(monkeypatch, pipe, how)
    with pytest.warns(UserWarning, match="of the UNet as a whole does not act"):
        after = pipe("a cat", seed=3, output_type="latent").images
    assert torch.equal(after, before)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe("a cat", seed=3)
    assert not [one for one in said if "as a whole" in str(one.message)]


@pytest.mark.parametrize("who", ["nobody", "accelerate", "tomesd"])
def test_what_acts_around_the_unet_is_not_said_to_do_nothing(pipe: Any, who: str) -> None:
    if who == "accelerate":
        cpu_offload(pipe.unet, torch.device("cpu"))
    elif who == "tomesd":
        pytest.importorskip("tomesd").apply_patch(pipe, ratio=0.5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe("a cat", seed=3)
    assert not [one for one in said if "as a whole" in str(one.message)]


def test_deepcache_is_said_to_do_nothing(pipe: Any) -> None:
    """It puts a forward of its own in the UNet's place, and counts the steps of a loop there."""
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper(pipe=pipe)
    before = paint(pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    with pytest.warns(UserWarning, match="of the UNet as a whole does not act"):
        after = pipe("a cat", seed=3, output_type="latent").images
    assert torch.equal(after, before)
