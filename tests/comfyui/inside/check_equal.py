"""ComfyUI's latents against TiuePipeline's: the same seed, prompt and student, float32."""

import pytest
import torch
from harness import TOLERANCE, Student, loading

import comfy.samplers  # isort: skip
import nodes as stock  # isort: skip

PROMPT = "a cat on a red background"


def test_text_encoder(student):
    assert torch.allclose(
        student.condition(PROMPT)[0][0], student.pipe.encode_prompt([PROMPT]), atol=1e-5
    )


def test_one_pass_sampler(student, nodes):
    out = nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(), 7)
    assert student.difference(out["samples"], student.reference(PROMPT, 7)) <= TOLERANCE


def test_the_scale_at_which_float32_rounds(student):
    """The terms of Eq. 11 are as large as TOLERANCE takes them for, whatever their sum is."""
    from tiue_pack.tiue_core import draw_noise

    noise = draw_noise(range(8), (4, 16, 16))
    assert 12 < (student.pipe.schedule().signal * noise).abs().max() < 24


def test_a_latent_is_the_prompts_and_the_seeds(student):
    """Another prompt or seed is further away than a thousand tolerances."""
    reference = student.reference(PROMPT, 7)
    for other in (student.reference("a dog", 7), student.reference(PROMPT, 8)):
        assert student.distance(other / student.scale, reference) > 1000 * TOLERANCE


def test_the_teacher(nodes):
    """`stickers` with the teacher's UNet, whose loop is the stock KSampler's on its sigmas."""
    from tiue_pack.tiue_core import students

    source = students.find("stickers-teacher")
    model, clip, _ = loading.load_folder(source.path, dtype=torch.float32, unet=source.unet)
    pipe = students.load("stickers-teacher")
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    out = nodes.OnePassSampler(model, positive, latent, 7)["samples"]
    reference = pipe(PROMPT, seed=7, output_type="latent").images
    scale = model.model.latent_format.scale_factor
    assert (out * scale - reference).abs().max() <= TOLERANCE


def test_image(student, nodes):
    out = nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(), 7)
    image = student.vae.decode(out["samples"])[0]
    expected = student.pipe(PROMPT, seed=7, output_type="pt").images[0].movedim(0, -1)
    assert (image - expected).abs().max() <= 1e-4


def test_weighted_words(student):
    """'(word:1.3)' moves away from the empty prompt, whose special tokens are the tokenizer's."""
    plain = student.condition("a cat on a red background")[0][0]
    empty = student.condition("")[0][0]
    weighted = student.condition("a (cat:1.3) on a red background")[0][0]
    moved = (weighted - plain).abs().amax(-1)[0]
    place = moved.argmax()
    expected = empty[0, place] + 1.3 * (plain[0, place] - empty[0, place])
    assert torch.allclose(weighted[0, place], expected, atol=1e-5)


def test_tiny_autoencoder(tmp_path, nodes):
    import tiny

    with torch.inference_mode(False):
        made = Student(tiny.student(tmp_path / "student", tiny_vae=True))
    out = nodes.OnePassSampler(made.model, made.condition(PROMPT), made.latent(), 7)
    assert made.difference(out["samples"], made.reference(PROMPT, 7)) <= TOLERANCE
    image = made.vae.decode(out["samples"])[0]
    expected = made.pipe(PROMPT, seed=7, output_type="pt").images[0].movedim(0, -1)
    assert (image - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("height, width", [(16, 16), (17, 13), (9, 24)])
@pytest.mark.parametrize("chunk", [0, 1, 2, 3])
def test_batches_of_three_odd_sizes_and_chunks(student, nodes, height, width, chunk):
    latent = student.latent(3, height, width)
    positive = student.condition(PROMPT)
    out = nodes.OnePassSampler(student.model, positive, latent, 5, chunk=chunk)
    size = {"height": 8 * height, "width": 8 * width, "count": 3}
    assert student.difference(out["samples"], student.reference(PROMPT, 5, **size)) <= TOLERANCE


def test_an_image_does_not_depend_on_its_neighbours(student, nodes):
    positive = student.condition(PROMPT)
    many = nodes.OnePassSampler(student.model, positive, student.latent(4), 40)["samples"]
    one = nodes.OnePassSampler(student.model, positive, student.latent(1), 42)["samples"]
    assert (many[2:3] - one).abs().max() <= TOLERANCE
    picked = {"samples": student.latent(1)["samples"], "batch_index": [2]}
    again = nodes.OnePassSampler(student.model, positive, picked, 40)["samples"]
    assert torch.equal(again, one)


@pytest.mark.parametrize("decoders", [1, 2, 3, 6])
def test_any_number_of_decoders(student, nodes, decoders):
    positive = student.condition(PROMPT)
    out = nodes.OnePassSampler(student.model, positive, student.latent(), 3, decoders)
    assert student.difference(out["samples"], student.reference(PROMPT, 3, steps=decoders)) <= (
        TOLERANCE
    )


@pytest.mark.parametrize("guidance", [3.0, 0.0])
def test_guidance(student, nodes, guidance):
    positive, negative = student.condition(PROMPT), student.condition("a dog")
    out = nodes.OnePassSampler(
        student.model, positive, student.latent(2), 9, guidance=guidance, negative=negative
    )
    reference = student.reference(
        PROMPT, 9, count=2, guidance_scale=guidance, negative_prompt="a dog"
    )
    assert student.difference(out["samples"], reference) <= TOLERANCE


def test_sampler_custom_advanced(student, nodes):
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    guider = BasicGuider()
    get = getattr(guider, "get_guider", None) or guider.execute
    guider = get(student.model, student.condition(PROMPT))[0]
    sampler = SamplerCustomAdvanced()
    run = getattr(sampler, "sample", None) or sampler.execute
    out = run(
        nodes.Noise(11), guider, nodes.Sampler(), nodes.Sigmas(student.model), student.latent(2)
    )
    reference = student.reference(PROMPT, 11, count=2)
    assert student.difference(out[0]["samples"], reference) <= TOLERANCE


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "lcm"])
@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras", "sgm_uniform"])
def test_stock_ksampler_at_one_step(student, nodes, name, scheduler):
    model = nodes.PatchModel(student.model)
    positive = student.condition(PROMPT)
    out = stock.common_ksampler(
        model, 13, 1, 1.0, name, scheduler, positive, positive, student.latent()
    )
    assert student.difference(out[0]["samples"], student.reference(PROMPT, 13)) <= TOLERANCE


def test_three_calls(student, nodes):
    positive, latent = student.condition(PROMPT), student.latent(2)
    features = nodes.Encode(student.model, positive, latent, 17)
    predictions = nodes.Decode(student.model, features, positive)
    out = nodes.Combine(predictions)
    assert student.difference(out["samples"], student.reference(PROMPT, 17, count=2)) <= TOLERANCE


def test_a_prompt_per_timestep(student, nodes):
    """Decoders with prompts of their own, against SplitUNet."""
    from tiue_pack.tiue_core import SplitUNet, draw_noise

    other = "a dog on a blue background"
    cat, dog = student.condition(PROMPT), student.condition(other)
    features = nodes.Encode(student.model, cat, student.latent(), 19)
    first = nodes.Decode(student.model, features, cat)
    chained = nodes.Decode(student.model, features, dog, "501, 251", first)
    out = nodes.Combine(chained, "1, 2, 1, 0.5")

    pipe, schedule = student.pipe, student.pipe.schedule()
    noise = draw_noise([19], (4, 16, 16))
    prompts = pipe.encode_prompt([PROMPT, other])
    unet = SplitUNet(pipe.unet)
    encoded = unet.encode(noise, schedule.timesteps[0], prompts[:1])
    predictions = unet.decode(encoded, schedule.timesteps, prompts[[0, 1, 1, 0]])
    factors = torch.tensor([1, 2, 1, 0.5]).view(4, 1, 1, 1, 1)
    assert student.difference(out["samples"], schedule.combine(noise, predictions * factors)) <= (
        TOLERANCE
    )


def test_decoding_at_fewer_timesteps(student, nodes):
    from tiue_pack.tiue_core import OneWaySchedule

    positive = student.condition(PROMPT)
    features = nodes.Encode(student.model, positive, student.latent(), 23)
    out = nodes.Combine(nodes.Decode(student.model, features, positive, "751 501 251"))
    schedule = OneWaySchedule.from_config(student.pipe.scheduler, timesteps=[751, 501, 251])
    full = nodes.Decode(student.model, features, positive)
    predictions = torch.stack([full.by_timestep[t] for t in (751, 501, 251)])
    assert student.difference(
        out["samples"], schedule.combine(full.encoded.noise, predictions)
    ) <= (TOLERANCE)


RELEASED = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SHAPES = {
    "sd1.5": {**RELEASED, "attention_head_dim": 8},
    "sd2.1": {**RELEASED, "attention_head_dim": [1, 2, 2, 2], "use_linear_projection": True},
    "broken-multiples": {"block_out_channels": (64, 128, 160), "transformer_layers_per_block": 2},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(tmp_path, nodes, shape):
    import tiny

    with torch.inference_mode(False):
        made = Student(tiny.student(tmp_path / "student", **shape))
    out = nodes.OnePassSampler(made.model, made.condition(PROMPT), made.latent(2, 13, 16), 29)
    reference = made.reference(PROMPT, 29, count=2, height=104, width=128)
    assert made.difference(out["samples"], reference) <= TOLERANCE


@pytest.mark.parametrize("family", ["sd1.5", "sd2.1"])
def test_a_checkpoint_file(tmp_path, nodes, family):
    """One file through ComfyUI's own loader, which takes this one of 2.1 for v-prediction."""
    import tiny
    from safetensors.torch import save_file
    from tiue_pack.nodes.native import onepass

    shapes = {
        "sd1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "sd2.1": {
            "cross_attention_dim": 1024,
            "attention_head_dim": 5,
            "use_linear_projection": True,
        },
    }
    with torch.inference_mode(False):
        folder = tiny.student(
            tmp_path / "student",
            block_out_channels=(320, 320),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **shapes[family],
        )
        model, clip, _ = loading.load_folder(folder, dtype=torch.float32)
        prefix = "model.diffusion_model."
        state = model.model.diffusion_model.state_dict()
        tensors = {prefix + key: value.contiguous() for key, value in state.items()}
        bias = f"{prefix}output_blocks.11.1.transformer_blocks.0.norm1.bias"
        tensors[bias] = torch.linspace(-1, 1, 320)  # what makes ComfyUI guess v-prediction
        text = {
            "sd1.5": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            "sd2.1": "cond_stage_model.model.ln_final.weight",
        }
        tensors[text[family]] = torch.ones(shapes[family]["cross_attention_dim"])
        file = tmp_path / "student.safetensors"
        save_file(tensors, file)

    checkpoint, _, _ = loading.load_checkpoint(file)
    assert onepass.made_of(checkpoint).scheduler["prediction_type"] == "epsilon"
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    one = nodes.OnePassSampler(checkpoint, positive, latent, 3)["samples"] * 0.18215
    two = nodes.OnePassSampler(model, positive, latent, 3)["samples"]
    two = two * model.model.latent_format.scale_factor
    assert (one - two).abs().max() <= TOLERANCE


def test_velocity_prediction(tmp_path, nodes):
    import json

    import tiny

    with torch.inference_mode(False):
        folder = tiny.student(tmp_path / "student")
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"})
        )
        made = Student(folder)
    out = nodes.OnePassSampler(made.model, made.condition(PROMPT), made.latent(), 31)
    assert made.difference(out["samples"], made.reference(PROMPT, 31)) <= TOLERANCE


def test_the_progress_reaches_its_end(student, nodes, monkeypatch):
    seen = []
    import latent_preview

    monkeypatch.setattr(
        latent_preview,
        "prepare_callback",
        lambda model, steps, *_: lambda step, x0, x, total: seen.append((step + 1, total, steps)),
    )
    nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(), 1)
    assert seen == [(4, 4, 4)]
    assert comfy.samplers.KSAMPLER  # the stock samplers are left as they are
