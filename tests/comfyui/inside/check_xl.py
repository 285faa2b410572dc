"""SDXL's layout: two text encoders, pooled text and sizes, against TiuePipeline and diffusers."""

import json
import shutil

import pytest
import tiny
import torch
from check_saved import output, painted, saved  # noqa: F401 (a fixture)
from harness import TOLERANCE, Student, loading
from safetensors.torch import save_file

import folder_paths  # isort: skip
import nodes as stock  # isort: skip
from comfy_extras import nodes_model_merging as merging  # isort: skip

PROMPT = "a cat on a red background"
SHAPES = {
    "random": {},
    "plain": {"use_linear_projection": False, "transformer_layers_per_block": 1},
}


@pytest.fixture(scope="module", params=SHAPES)
def student(request, tmp_path_factory):
    with torch.inference_mode(False):
        folder = tmp_path_factory.mktemp("xl") / "student"
        return Student(tiny.sdxl(folder, **SHAPES[request.param]))


def test_both_text_encoders(student):
    from tiue_pack.tiue_core.core.packed import unpack

    for prompt in (PROMPT, "a dog", ""):
        ((embeds, rest),) = student.condition(prompt)
        packed = student.pipe.encode_prompt([prompt])
        wanted, added = unpack(student.pipe.unet, packed, (16, 16), 8)
        assert torch.allclose(embeds, wanted, atol=1e-5)
        assert torch.allclose(rest["pooled_output"], added["text_embeds"], atol=1e-5)
        assert (embeds.abs().max() > 0.1) == bool(prompt)


@pytest.mark.parametrize("prompt", [PROMPT, ""])
@pytest.mark.parametrize("size", [(16, 16), (24, 13)])
@pytest.mark.parametrize("speed", ["plain", "exact"])
def test_one_pass_sampler(student, nodes, prompt, size, speed):
    latent = student.latent(2, *size)
    out = nodes.OnePassSampler(student.model, student.condition(prompt), latent, 7, speed=speed)
    pixels = {"height": 8 * size[0], "width": 8 * size[1], "count": 2}
    assert student.difference(out["samples"], student.reference(prompt, 7, **pixels)) <= TOLERANCE


def test_guidance_away_from_nothing(student, nodes):
    """An empty prompt is zeros here, as in the pipeline."""
    positive, negative = student.condition(PROMPT), student.condition("")
    out = nodes.OnePassSampler(
        student.model, positive, student.latent(2), 9, guidance=3.0, negative=negative
    )
    reference = student.reference(PROMPT, 9, count=2, guidance_scale=3.0)
    assert student.difference(out["samples"], reference) <= TOLERANCE


@pytest.mark.parametrize("scheduler", ["normal", "sgm_uniform"])
def test_patch_model_and_the_stock_ksampler(student, nodes, scheduler):
    positive = student.condition(PROMPT)
    out = stock.common_ksampler(
        nodes.PatchModel(student.model), 13, 1, 1.0, "euler", scheduler, positive, positive,
        student.latent(),
    )  # fmt: skip
    assert student.difference(out[0]["samples"], student.reference(PROMPT, 13)) <= TOLERANCE


def test_three_calls_and_the_picture(student, nodes):
    positive = student.condition(PROMPT)
    features = nodes.Encode(student.model, positive, student.latent(2), 17)
    out = nodes.Combine(nodes.Decode(student.model, features, positive))
    assert student.difference(out["samples"], student.reference(PROMPT, 17, count=2)) <= TOLERANCE
    image = student.vae.decode(out["samples"])[1]
    expected = student.pipe(PROMPT, seed=18, output_type="pt").images[0].movedim(0, -1)
    assert (image - expected).abs().max() <= 1e-4


def test_sizes_of_ones_own(student, nodes):
    """CLIPTextEncodeSDXL's width, height and corner reach the UNet in diffusers' order."""
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
    from tiue_pack.tiue_core import SplitUNet, draw_noise
    from tiue_pack.tiue_core.core.packed import unpack

    node = CLIPTextEncodeSDXL()
    encode = getattr(node, "encode", None) or node.execute
    width, height, left, top, target_width, target_height = 320, 192, 40, 24, 256, 136
    positive = encode(
        student.clip, width, height, left, top, target_width, target_height, PROMPT, PROMPT
    )[0]
    out = nodes.OnePassSampler(student.model, positive, student.latent(), 3)["samples"]
    schedule, unet = student.pipe.schedule(), SplitUNet(student.pipe.unet)
    noise = draw_noise([3], (4, 16, 16))
    embeds, added = unpack(unet.unet, student.pipe.encode_prompt([PROMPT]), (16, 16), 8)
    ids = [height, width, top, left, target_height, target_width]
    added["time_ids"] = torch.tensor([ids]).float()
    features = unet.encode(noise, schedule.timesteps[0], embeds, added_cond_kwargs=added)
    predictions = unet.decode(features, schedule.timesteps, embeds, added_cond_kwargs=added)
    reference = schedule.combine(noise, predictions)
    assert student.difference(out, reference) <= TOLERANCE
    assert student.distance(out, student.reference(PROMPT, 3)) > 10 * TOLERANCE


def test_a_lora_of_both_text_encoders(student, nodes, tmp_path):
    """kohya's names, through the stock loader; the reference is merged by hand."""
    import comfy.sd

    models = {
        "lora_unet": student.pipe.unet,
        "lora_te1": student.pipe.text_encoder,
        "lora_te2": student.pipe.text_encoder_2,
    }
    tensors, kept = {}, []
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        for prefix, model in models.items():
            for name, module in model.named_modules():
                if not name.endswith(("to_k", "q_proj", "fc1")):
                    continue
                rows, columns = module.weight.shape
                down = torch.randn(2, columns, generator=generator) / columns**0.5
                up = torch.randn(rows, 2, generator=generator) / 4
                whole = "text_model." * ("te" in prefix) + name.removeprefix("text_model.")
                key = f"{prefix}_{whole.replace('.', '_')}"
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(1.0)
                kept.append((module.weight, module.weight.detach().clone()))
                module.weight.data += 0.8 * 0.5 * up @ down
    model, clip = comfy.sd.load_lora_for_models(student.model, student.clip, tensors, 0.8, 0.8)
    assert len(model.patches) + len(clip.patcher.patches) == len(kept)
    try:
        reference = student.reference(PROMPT, 3)
    finally:
        for weight, value in kept:
            weight.data.copy_(value)
    out = nodes.OnePassSampler(model, student.condition(PROMPT, clip), student.latent(), 3)
    assert student.difference(out["samples"], reference) <= TOLERANCE
    assert student.distance(out["samples"], student.reference(PROMPT, 3)) > 100 * TOLERANCE


@pytest.mark.parametrize("how", ["CheckpointSave", "Save Student"])
def test_a_checkpoint_is_read_back(nodes, output, student, how):  # noqa: F811
    with torch.inference_mode(False):
        parts = loading.load_folder(student.folder)  # in ComfyUI's own choice of dtypes
    if how == "Save Student":
        nodes.SaveStudent(*parts, "mine")
    else:
        merging.CheckpointSave().save(*parts, "checkpoints/mine")
    (name,) = saved(output)
    folder_paths.filename_list_cache.clear()
    again = nodes.LoadStudent(name)
    for ours, theirs in zip(painted(nodes, *again), painted(nodes, *parts), strict=True):
        assert torch.equal(ours, theirs)
    assert again[0].get_attachment("tiue") == parts[0].get_attachment("tiue")
    zeros, rest = again[1].encode_from_tokens_scheduled(again[1].tokenize(""))[0]
    assert zeros.abs().max() == 0 and rest["pooled_output"].abs().max() == 0


def test_the_library_reads_what_comfyui_saves(output, student):  # noqa: F811
    """Its CheckpointSave is another hand's writing of SDXL's own names."""
    from tiue_pack.tiue_core.pipelines.base import TiuePipeline

    merging.CheckpointSave().save(student.model, student.clip, student.vae, "checkpoints/mine")
    (file,) = saved(output).values()
    with torch.inference_mode(False):
        read = TiuePipeline.from_pretrained(file, base=student.folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, wanted = (getattr(p, part).state_dict() for p in (read, student.pipe))
        assert all(torch.equal(mine[key], wanted[key]) for key in wanted), part
    latents = read(PROMPT, seed=3, output_type="latent").images
    assert student.difference(latents / student.scale, student.reference(PROMPT, 3)) <= TOLERANCE


def test_a_folder_is_saved_and_read_back(nodes, output, student):  # noqa: F811
    """Save Student's other layout: every tensor is the folder's that was loaded."""
    from tiue_pack.tiue_core.pipelines.base import TiuePipeline

    nodes.SaveStudent(student.model, student.clip, student.vae, "mine", "diffusers folder")
    folder = output / "tiue" / "mine"
    with torch.inference_mode(False):
        read = TiuePipeline.from_pretrained(folder)
    assert type(read).__name__ == "TiueXLPipeline" and read.config.force_zeros_for_empty_prompt
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, wanted = (getattr(p, part).state_dict() for p in (read, student.pipe))
        assert all(torch.equal(mine[key], wanted[key]) for key in wanted), part
    for prompt in (PROMPT, ""):
        latents = read(prompt, seed=3, output_type="latent").images
        wanted = student.reference(prompt, 3)  # kernels may add up otherwise
        assert (latents - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_one_encoder_of_two_is_refused(nodes, output, student):  # noqa: F811
    from tiue_pack.tiue_core.errors import TiueError

    merging.CLIPSave().save(student.clip, "clip/mine")
    folder_paths.filename_list_cache.clear()
    first = next(name for name in saved(output) if "clip_l" in name)
    with pytest.raises(TiueError, match="one of the student's two text encoders"):
        nodes.LoadStudent(first.replace("clip/", "text_encoders/", 1))


@pytest.mark.parametrize(
    "shape, match",
    [({"layers": 2}, "text encoders of 2 layers"), ({"projection": 64}, "a pooled prompt of 64")],
)
def test_what_comfyui_cannot_hold_is_one_line(tmp_path, shape, match):
    with torch.inference_mode(False):
        folder = tiny.sdxl(tmp_path / "student", **shape)
    with pytest.raises(ValueError, match=match) as error:
        loading.load_folder(folder)
    assert "\n" not in str(error.value)


FULL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_comfyui_knows_an_exported_checkpoint():
    """SDXL's own sizes, without memory: detected, and every tensor has its place there."""
    from comfy import model_detection, supported_models
    from diffusers import UNet2DConditionModel
    from tiue_pack.tiue_core.students import original
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    second = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL)
        one = CLIPTextModel(CLIPTextConfig(**first, num_hidden_layers=12))
        two = CLIPTextModelWithProjection(
            CLIPTextConfig(**second, num_hidden_layers=32, projection_dim=1280)
        )
    tensors = original.unet_tensors(unet.state_dict(), unet.config)
    prefix = "model.diffusion_model."
    named = {prefix + key: tensor for key, tensor in tensors.items()}
    config = model_detection.model_config_from_unet(named, prefix)
    assert type(config) is supported_models.SDXL
    model = config.get_model(named, prefix, device="meta")
    wanted = model.diffusion_model.state_dict()
    assert {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in tensors.items()}
    texts = {}
    for at, made in (
        ("0.", original.first_text_tensors(one.state_dict(), one.config.to_dict())),
        ("1.", original.second_text_tensors(two.state_dict(), two.config.to_dict())),
    ):
        texts |= {f"conditioner.embedders.{at}{key}": tensor for key, tensor in made.items()}
    found = config.process_clip_state_dict(texts)
    clip = config.clip_target().clip(device="meta", dtype=torch.float32)
    missing, left = clip.load_state_dict(found, strict=False, assign=True)
    idle = ("logit_scale", "clip_l.transformer.text_projection.weight")
    assert not left and all(key.endswith(idle) for key in missing)


@pytest.mark.parametrize("ours", [True, False])
def test_what_load_student_adds_to_comfyuis_own_loader(tmp_path, monkeypatch, student, ours):
    """A whole SDXL file goes through ComfyUI's loader, which says nothing of an empty prompt."""
    import comfy.sd
    from tiue_pack.tiue_core.students import checkpoint

    with torch.inference_mode(False):
        index = json.loads((student.folder / "model_index.json").read_text())
        folder = tmp_path / "student"
        shutil.copytree(student.folder, folder)
        index[checkpoint.BLANK] = False
        (folder / "model_index.json").write_text(json.dumps(index))
        parts = loading.load_folder(folder)
        made = parts[0].get_attachment("tiue")
        file = tmp_path / "whole.safetensors"
        metadata = checkpoint.metadata(made, 2048) if ours else None
        save_file({"model.diffusion_model.x": torch.zeros(1)}, file, metadata)
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", lambda *_, **__: (*parts, None))
    model, clip, _ = loading.load_checkpoint(file)
    found = model.get_attachment("tiue")
    assert (found.side, found.blank_zeros) == ((128, False) if ours else (1024, True))
    embeds, rest = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0]
    assert (embeds.abs().max() > 0.1) == ours == bool(rest["pooled_output"].abs().max() > 0)
