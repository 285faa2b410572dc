"""The pipeline against Stable Diffusion's own, and what people expect of a diffusers pipeline."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderTiny, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from packaging.version import Version
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from small import SD_SCHEDULER, TEXT_WIDTH, small_unet
from test_unet import shared_encoder

from tiue_core import (
    SplitUNet,
    TiueOutput,
    TiuePipeline,
    draw_noise,
)
from tiue_core.errors import TiueError

LEVEL = 1 / 255  # of eight-bit images


def pixels(pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """(N, 3, H, W) in [0, 1]."""
    return pipe(*args, **kwargs, output_type="pt").images


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (3.5, None), (2.0, "a dog")])
def test_equals_stable_diffusion_with_a_shared_encoder(pipe, components, guidance, negative):
    """The stock pipeline, its loop and scheduler, with the encoder's features held fixed."""
    stock = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)
    arguments = {"prompt": ["a cat", "a car"], "width": 72, "height": 56}
    arguments |= {"guidance_scale": guidance, "negative_prompt": negative}
    with shared_encoder(components["unet"]):
        expected = stock(
            **(arguments | {"negative_prompt": negative and [negative] * 2}),
            num_inference_steps=4,
            latents=draw_noise([5, 6], (4, 7, 9)),
            output_type="pt",
        ).images
    images = pixels(pipe, **arguments, seed=5)
    assert images.shape == (2, 3, 56, 72)
    assert largest(images, expected) <= LEVEL


def test_fast_leaves_out_the_last_decoder(pipe):
    arguments = {"prompt": ["a cat", "a car"], "seed": 5, "output_type": "latent"}
    exact, fast = (pipe(**arguments, decoders=which).images for which in ("exact", "fast"))
    noise = draw_noise([5, 6], exact.shape[1:])
    embeds, unet = pipe.encode_prompt(arguments["prompt"]), SplitUNet(pipe.unet)
    with torch.no_grad():
        features = unet.encode(noise, 751, embeds)
        predictions = unet.decode(features, [751, 501, 251, 1], embeds)
    moved = -0.0121421 * (predictions[2] - predictions[3])  # E_1 (eps_251 - eps_1)
    assert largest(fast - exact, moved) <= 0.02 * moved.abs().max()
    assert moved.abs().max() > 5e-5 * exact.abs().max()  # far above what float32 rounds


def test_an_image_does_not_change_with_its_batch(pipe):
    prompts = ["a cat", "a dog", "", "a red car", "two cats", "a star", "a cat"]
    seven = pixels(pipe, prompts, seed=40, batch_size=7)
    alone = torch.cat([pixels(pipe, prompt, seed=40 + i) for i, prompt in enumerate(prompts)])
    halves = pixels(pipe, prompts, seed=list(range(40, 47)), batch_size=3)
    assert largest(seven, alone) <= LEVEL
    assert largest(seven, halves) <= LEVEL
    assert largest(seven[0], seven[6]) > LEVEL  # same prompt, other seed


def test_noise_depends_on_its_own_seed_alone():
    noise = draw_noise([3, 0, 2**64 - 1], (4, 5, 7))
    assert noise.shape == (3, 4, 5, 7)
    assert noise.dtype == torch.float32
    for i, seed in enumerate([3, 0, 2**64 - 1]):
        generator = torch.Generator("cpu").manual_seed(seed)
        assert torch.equal(noise[i : i + 1], torch.randn(1, 4, 5, 7, generator=generator))


def test_half_precision_files_load_as_float32_unless_asked(pipe, tmp_path):
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    loaded = TiuePipeline.from_pretrained(tmp_path / "half")
    parts = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    loaded = TiuePipeline.from_pretrained(tmp_path / "half", torch_dtype=torch.float16)
    assert {part.dtype for part in (loaded.unet, loaded.text_encoder)} == {torch.float16}


def test_seeds(pipe):
    out = pipe(["a cat", "a dog"], seed=0, count=2, output_type="latent")
    assert isinstance(out, TiueOutput)
    assert out.seeds == [0, 1, 2, 3]
    assert torch.equal(
        out.images, pipe(["a cat", "a dog"], seed=0, count=2, output_type="latent")[0]
    )
    state = torch.get_rng_state()
    drawn = pipe("a cat", count=2, output_type="latent")
    assert torch.equal(state, torch.get_rng_state())
    assert drawn.seeds[1] == drawn.seeds[0] + 1
    again = pipe("a cat", seed=drawn.seeds, count=2, output_type="latent").images
    assert torch.equal(drawn.images, again)
    assert pipe("a cat", output_type="latent").seeds != drawn.seeds[:1]
    images, seeds = pipe("a cat", seed=np.int64(7), output_type="latent", return_dict=False)
    assert seeds == [7]
    assert torch.equal(images, pipe("a cat", seed=[7], output_type="latent").images)


def test_noise_and_prompt_embeds_of_the_caller(pipe):
    out = pipe("a cat", latents=draw_noise([9], (4, 8, 8)), output_type="latent")
    assert out.seeds == []
    assert torch.equal(out.images, pipe("a cat", seed=9, output_type="latent").images)
    embeds = pipe.encode_prompt(["a cat"]).detach()
    assert embeds.shape == (1, 16, TEXT_WIDTH)
    by_embeds = pipe(prompt_embeds=embeds, seed=9, output_type="latent").images
    assert torch.equal(out.images, by_embeds)


def test_output_types_and_sizes(pipe):
    arguments = {"prompt": "a cat", "seed": 1}
    pil = pipe(**arguments).images[0]
    assert isinstance(pil, Image.Image)
    assert pil.size == (64, 64)  # sample_size 8, factor 8
    array = pipe(**arguments, output_type="np", count=3, batch_size=2).images
    assert array.shape == (3, 64, 64, 3)
    assert np.abs(np.asarray(pil) - array[0] * 255).max() <= 1
    assert pipe(**arguments, output_type="latent").images.shape == (1, 4, 8, 8)
    assert pipe(**arguments, width=104, height=40).images[0].size == (104, 40)
    pipe.unet.register_to_config(sample_size=(6, 10))
    assert pipe(**arguments).images[0].size == (80, 48)


def test_steps_and_chunks(pipe):
    whole = pixels(pipe, "a cat", seed=1)
    assert largest(whole, pixels(pipe, "a cat", seed=1, chunk=1)) <= LEVEL
    assert largest(whole, pixels(pipe, "a cat", seed=1, steps=2)) > LEVEL
    assert torch.equal(whole, pixels(pipe, "a cat", seed=1, steps=4))


def test_callback_between_batches(pipe):
    seen = []
    pipe("a cat", seed=1, count=5, batch_size=2, callback=lambda *a: seen.append(a))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_whitespace_and_empty_prompts(pipe):
    lines, line = pipe([" a  cat\non a\tmat ", "a cat on a mat"], seed=[3, 3], output_type="pt")[0]
    assert largest(lines, line) <= 1e-5
    assert len(pipe(["", "   "], seed=3).images) == 2


def test_a_long_prompt_warns_of_the_words_it_drops(pipe):
    # A word takes a token per letter here, and start and end take one each: 14 letters fit.
    with pytest.warns(
        UserWarning, match=r"16 tokens, these words are dropped: blue mat$"
    ) as caught:
        assert len(pipe("the cat on this blue mat", seed=1).images) == 1
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("the cat on this", seed=1)  # exactly 13 letters
        pipe("the cat on thiss", seed=1)  # exactly 14


@pytest.mark.filterwarnings("ignore:.torch_dtype.:FutureWarning")  # older diffusers know no other
def test_save_and_load(pipe, tmp_path):
    expected = pixels(pipe, "a cat", seed=1)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = TiuePipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(expected, pixels(loaded, "a cat", seed=1))
    assert [*(tmp_path / "saved").rglob("*.bin")] == []
    half = TiuePipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    assert largest(expected, pixels(half, "a cat", seed=1).float()) < 0.1
    assert loaded.to(torch.float64).unet.dtype == torch.float64
    if Version(transformers.__version__) < Version("5"):
        with pytest.raises(TiueError, match="no text encoder in float64"):
            pixels(loaded, "a cat", seed=1)
        loaded.text_encoder.float()
    assert largest(expected, pixels(loaded, "a cat", seed=1)) <= LEVEL
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(stock.unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_a_student_is_saved_with_its_own_schedule(components, tmp_path):
    pipe = TiuePipeline(**components, timesteps=[999])
    assert pipe.schedule().timesteps.tolist() == [999]
    assert pipe.schedule(2).timesteps.tolist() == [501, 1]
    pipe.save_pretrained(tmp_path / "one")
    loaded = TiuePipeline.from_pretrained(tmp_path / "one")
    assert loaded.schedule().timesteps.tolist() == [999]
    assert torch.equal(pixels(pipe, "a cat", seed=1), pixels(loaded, "a cat", seed=1))
    TiuePipeline(**components, steps=2).save_pretrained(tmp_path / "two")
    assert len(TiuePipeline.from_pretrained(tmp_path / "two").schedule()) == 2


@pytest.mark.parametrize(
    "checker", [(None, None), ("stable_diffusion", "StableDiffusionSafetyChecker")]
)
def test_folders_of_stable_diffusion_load_as_they_are(authors_folder, pipe, checker, caplog):
    folder = authors_folder(checker)  # the checker's own folder is missing: it must not be wanted
    loaded = TiuePipeline.from_pretrained(folder)
    assert caplog.text == ""
    assert torch.equal(pixels(pipe, "a cat", seed=1), pixels(loaded, "a cat", seed=1))
    assert sorted(loaded.components) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]


def test_other_schedulers_and_the_components_of_a_stock_pipeline(components, pipe):
    known = {k: v for k, v in SD_SCHEDULER.items() if k != "clip_sample"}
    components["scheduler"] = PNDMScheduler(**known, skip_prk_steps=True)
    stock = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    other = TiuePipeline(**stock.components)
    assert torch.equal(pixels(pipe, "a cat", seed=1), pixels(other, "a cat", seed=1))


def test_a_tiny_autoencoder(components):
    components["vae"] = AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4
    ).eval()
    assert pixels(TiuePipeline(**components), "a cat", seed=1).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_loras_load_and_unload(pipe, tmp_path, naming):
    donor = small_unet()
    donor.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(donor)
    file = tmp_path / "style.safetensors"
    if naming == "diffusers":
        TiuePipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name=file.name)
    else:
        named = {f"unet.{key}": value.contiguous() for key, value in layers.items()}
        save_file(convert_state_dict_to_kohya(named), file)
    plain = pixels(pipe, "a cat", seed=1)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="style")
    styled = pixels(pipe, "a cat", seed=1)
    assert largest(plain, styled) > LEVEL
    pipe.set_adapters("style", 0.0)
    assert largest(plain, pixels(pipe, "a cat", seed=1)) <= 1e-6
    pipe.unload_lora_weights()
    assert torch.equal(plain, pixels(pipe, "a cat", seed=1))


def test_sequential_offload(pipe):
    """Weights on "meta", each brought back for its own layer; works without an accelerator."""
    expected = pixels(pipe, "a cat", seed=1)
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert pipe.unet.conv_in.weight.is_meta
    for _ in range(2):
        assert largest(expected, pixels(pipe, "a cat", seed=1)) <= LEVEL


def test_a_hook_on_the_whole_unet_is_called(pipe):
    """Model offloading brings the UNet to its device in such a hook, before its forward."""
    called = []

    class Recorder(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            called.append(module)
            return args, kwargs

    add_hook_to_module(pipe.unet, Recorder())
    pixels(pipe, "a cat", seed=1)
    assert called == [pipe.unet, pipe.unet]  # encode, decode


def test_model_offload_without_an_accelerator(pipe):
    """The hooks' coming and going, with the CPU as the device that they bring the models to."""
    expected = pixels(pipe, "a cat", seed=1)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert largest(expected, pixels(pipe, "a cat", seed=1)) <= LEVEL


@pytest.mark.skipif(not torch.cuda.is_available(), reason="real offloading needs a GPU")
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_from_a_gpu(pipe, way):
    expected = pixels(pipe, "a cat", seed=1)
    getattr(pipe, way)()
    for _ in range(2):
        assert largest(expected, pixels(pipe, "a cat", seed=1).cpu()) <= 2 * LEVEL
        assert pipe.unet.device.type in ("cpu", "meta")


@pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.37") and not torch.cuda.is_available(),
    reason="diffusers 0.36 offloads in groups with an accelerator only",
)
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(pipe, tmp_path, kind):
    """Weights on disk, a group at a time in memory; works without an accelerator."""
    expected = pixels(pipe, "a cat", seed=1)
    cpu = torch.device("cpu")
    groups = {"num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path / kind)}
    pipe.unet.enable_group_offload(cpu, cpu, offload_type=kind, **groups)
    pipe.unet.conv_in.weight.data.zero_()  # what is in memory now does not count
    assert largest(expected, pixels(pipe, "a cat", seed=1)) <= LEVEL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": None}, "give either prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 16, TEXT_WIDTH)}, "give either prompt or prompt_embeds"),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(16, TEXT_WIDTH)},
            "prompt_embeds have shape",
        ),
        ({"prompt": 3}, "prompt is 3: give a text"),
        ({"prompt": []}, "prompt is []: give a text"),
        ({"prompt": ["a", 3]}, "give a text or a list of texts"),
        ({"negative_prompt": 3}, "negative_prompt is 3"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"count": 0}, "count is 0: give a whole number from 1"),
        ({"count": -2}, "count is -2"),
        ({"count": 1.5}, "count is 1.5"),
        ({"count": "2"}, "count is '2'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"width": 65}, "width is 65: give a multiple of 8, such as 64"),
        ({"width": 3}, "width is 3: give a multiple of 8, such as 8"),
        ({"height": 0}, "height is 0: give a whole number from 1"),
        ({"height": -64}, "height is -64"),
        ({"height": 64.0}, "height is 64.0"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": 2**64 - 1, "count": 2}, "seed is 18446744073709551615"),
        ({"seed": True}, "seed is True"),
        ({"seed": "7"}, "seed is '7'"),
        ({"seed": [1, 2]}, "2 seeds for 1 images"),
        ({"seed": [1, None], "count": 2}, "seed is None"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 5000}, "steps is 5000"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'"),
        ({"output_type": "jpg"}, "output_type is 'jpg': give one of pil, pt, np, latent"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents have shape (2, 4, 8, 8)"),
        ({"latents": torch.zeros(1, 4, 8, 8), "seed": 1}, "leave one of them out"),
        ({"latents": torch.zeros(1, 4, 8, 8), "width": 72}, "width is 72 but the latents make 64"),
    ],
    ids=lambda value: re.sub(r"\s+", " ", str(value))[:40],
)
def test_bad_input_is_one_line(pipe, arguments, words):
    with pytest.raises(ValueError) as error:
        pipe(**{"prompt": "a cat", **arguments})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "takes 9 channels and gives 4"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "added conditions (text_time)",
        ),
    ],
)
def test_unets_that_are_no_students(components, changes, words):
    components["unet"] = small_unet(**changes)
    with pytest.raises(ValueError) as error:
        TiuePipeline(**components)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_only_safetensors_are_read(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(TiueError, match="holds only pickles"):
        TiuePipeline.from_pretrained(tmp_path)


def test_the_index_names_the_class(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["_class_name"], index["steps"], index["timesteps"]) == ("TiuePipeline", 4, None)
    assert isinstance(TiuePipeline.from_pretrained(tmp_path).scheduler, DDIMScheduler)
