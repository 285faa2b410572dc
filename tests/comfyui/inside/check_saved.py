"""What ComfyUI's save nodes and Save Student write is read back: the same latents, to the bit."""

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from harness import TOLERANCE, Student, loading
from tiue_pack.nodes.native import saving

import folder_paths  # isort: skip
from comfy_extras import nodes_model_merging as merging  # isort: skip

PROMPT = "a cat on a red background"


@pytest.fixture(scope="module")
def student():
    return Student(Path(os.environ["TIUE_STUDENT"]))


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    for kind in ("checkpoints", "diffusion_models", "text_encoders", "vae", "tiue"):
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        folder = "clip" if kind == "text_encoders" else kind
        places = ([*paths, str(tmp_path / folder)], extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, places)
    folder_paths.filename_list_cache.clear()
    return tmp_path


def painted(nodes, model, clip, vae):
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    out = nodes.OnePassSampler(model, positive, {"samples": torch.zeros(1, 4, 16, 16)}, 7)
    return out["samples"], vae.decode(out["samples"])


def saved(output):
    return {str(path.relative_to(output)): path for path in output.rglob("*.safetensors")}


PROMPT_OF_THE_GRAPH = {"1": {"class_type": "TiUELoadStudent", "inputs": {"student": "stickers"}}}


@pytest.mark.parametrize("how", ["CheckpointSave", "Save Student"])
def test_a_checkpoint_is_read_back(nodes, output, how):
    model, clip, vae = nodes.LoadStudent("stickers")
    if how == "Save Student":
        assert nodes.SaveStudent(model, clip, vae, "mine") == "checkpoints/mine.safetensors"
        card = (output / "checkpoints" / "mine.md").read_text()
        assert "4 decoders" in card and "stickers" in card
    else:
        merging.CheckpointSave().save(model, clip, vae, "checkpoints/mine")
    (name,) = saved(output)
    folder_paths.filename_list_cache.clear()
    again = nodes.LoadStudent(name)
    for ours, theirs in zip(painted(nodes, *again), painted(nodes, model, clip, vae), strict=True):
        assert torch.equal(ours, theirs)
    made = again[0].get_attachment("tiue")
    assert made.scheduler == model.get_attachment("tiue").scheduler and made.steps == 4


CHANGED = {
    "unet": "diffusion_model.middle_block.0.in_layers.2.weight",
    "text": "clip_l.transformer.text_model.final_layer_norm.bias",
    "vae": "decoder.conv_out.bias",
}


@pytest.mark.parametrize("part", CHANGED)
@pytest.mark.parametrize("how", ["CheckpointSave", "Save Student"])
def test_every_part_of_a_checkpoint_is_its_own(nodes, output, part, how):
    """Not the student's of that name, which stands in for what a file lacks."""
    model, clip, vae = nodes.LoadStudent("stickers")
    plain = painted(nodes, model, clip, vae)
    if part == "vae":
        vae.first_stage_model.get_parameter(CHANGED[part]).data += 0.3
    else:
        patched = model.clone() if part == "unet" else clip.clone()
        inner = patched.model if part == "unet" else patched.patcher.model
        shape = inner.state_dict()[CHANGED[part]].shape
        change = torch.randn(shape, generator=torch.manual_seed(0))
        patched.add_patches({CHANGED[part]: (change,)}, 0.5 if part == "unet" else 3.0)
        model, clip = (patched, clip) if part == "unet" else (model, patched)
    ours = painted(nodes, model, clip, vae)
    if how == "Save Student":
        nodes.SaveStudent(model, clip, vae, "mine")
    else:
        merging.CheckpointSave().save(model, clip, vae, "checkpoints/mine")
    folder_paths.filename_list_cache.clear()
    again = painted(nodes, *nodes.LoadStudent(*saved(output)))
    seen = part == "vae"  # the picture; else the latents
    moved = (ours[seen] - plain[seen]).abs().max()
    assert (again[seen] - ours[seen]).abs().max() < 0.05 < moved / 2  # half precision on disk


@pytest.mark.parametrize("part", ["UNet", "text encoder"])
def test_a_part_of_another_program_is_not_dropped_without_a_word(nodes, output, monkeypatch, part):
    from tiue_pack.nodes.native import notes, texts

    model, clip, vae = nodes.LoadStudent("stickers")
    if part == "UNet":
        kind = type(model.model.model_config)
        plain = kind.__mro__[1].process_unet_state_dict_for_saving
        monkeypatch.setattr(kind, "process_unet_state_dict_for_saving", plain)
    else:
        monkeypatch.setattr(texts._Tokenizer, "state_dict", lambda self: {})
    merging.CheckpointSave().save(model, clip, vae, "checkpoints/mine")
    (name,) = saved(output)
    folder_paths.filename_list_cache.clear()
    with notes.collected() as told:
        nodes.LoadStudent(name)
    assert [line for line in told if f"the {part} in mine" in line and "'stickers' is" in line]


def test_a_schedule_of_its_own_is_saved_and_is_in_the_metadata(nodes, output, tmp_path):
    """For Load Student; for `tiue`, Forge and whoever reads no tensors."""
    from tiue_pack.tiue_core.students.checkpoint import read_made

    with torch.inference_mode(False):
        folder = tiny.student(tmp_path / "student")
    for file, more in (
        (folder / "scheduler" / "scheduler_config.json", {"beta_end": 0.02}),
        (folder / "model_index.json", {"steps": 3}),
    ):
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    parts = loading.load_folder(folder)
    again = nodes.LoadStudent(nodes.SaveStudent(*parts, "mine"))
    (file,) = (path for name, path in saved(output).items() if name.startswith("checkpoints"))
    for made in (again[0].get_attachment("tiue"), read_made(file)):
        assert (made.scheduler["beta_end"], made.steps, made.timesteps) == (0.02, 3, None)
    assert torch.equal(painted(nodes, *again)[0], painted(nodes, *parts)[0])


def test_parts_are_read_back_and_the_rest_is_the_students(nodes, output):
    model, clip, vae = nodes.LoadStudent("stickers")
    reference = painted(nodes, model, clip, vae)
    merging.ModelSave().save(model, "diffusion_models/mine")
    merging.CLIPSave().save(clip, "clip/mine")
    merging.VAESave().save(vae, "vae/mine", PROMPT_OF_THE_GRAPH)
    assert len(saved(output)) == 3
    folder_paths.filename_list_cache.clear()
    for name in saved(output):
        choice = name.replace("clip/", "text_encoders/", 1)
        for ours, theirs in zip(painted(nodes, *nodes.LoadStudent(choice)), reference, strict=True):
            assert torch.equal(ours, theirs), name


def test_a_merge_is_saved_as_it_paints(nodes, output, tmp_path):
    first, clip, vae = nodes.LoadStudent("stickers")
    second, _, _ = nodes.LoadStudent("stickers-teacher")
    merge = merging.ModelMergeSimple()
    merged = (getattr(merge, "merge", None) or merge.execute)(first, second, 0.7)[0]
    reference, _ = painted(nodes, merged, clip, vae)
    assert (reference - painted(nodes, first, clip, vae)[0]).abs().max() > 100 * TOLERANCE
    nodes.SaveStudent(merged, clip, vae, "merged")
    folder_paths.filename_list_cache.clear()
    again, _ = painted(nodes, *nodes.LoadStudent("checkpoints/merged.safetensors"))
    assert (again - reference).abs().max() < 0.05  # half precision on disk


@pytest.mark.parametrize("layout", ["one checkpoint", "diffusers folder"])
@pytest.mark.parametrize("shape", [{}, {"use_linear_projection": True, "attention_head_dim": 8}])
def test_other_shapes_and_a_tiny_autoencoder(nodes, output, tmp_path, shape, layout):
    with torch.inference_mode(False):
        folder = tiny.student(tmp_path / "student", tiny_vae=bool(shape), **shape)
    parts = loading.load_folder(folder)
    again = nodes.LoadStudent(nodes.SaveStudent(*parts, "tiny", layout))
    for ours, theirs in zip(painted(nodes, *again), painted(nodes, *parts), strict=True):
        assert torch.equal(ours, theirs)


def test_a_folder_is_read_back_here_and_by_the_library(nodes, output):
    """With a LoRA: Load Student gives the same to the bit, TiuePipeline the same latents."""
    from tiue_pack.tiue_core.pipelines.base import TiuePipeline

    model, clip, vae = nodes.LoadStudent("stickers")
    key = "diffusion_model.middle_block.0.in_layers.2.weight"
    change = torch.randn(model.model.state_dict()[key].shape, generator=torch.manual_seed(0))
    model = model.clone()
    model.add_patches({key: (change,)}, 0.02)
    latents, pixels = painted(nodes, model, clip, vae)
    plain, _ = painted(nodes, *nodes.LoadStudent("stickers"))
    assert (latents - plain).abs().max() > 100 * TOLERANCE

    assert nodes.SaveStudent(model, clip, vae, "mine", "diffusers folder") == "tiue/mine"
    assert nodes.SaveStudent(model, clip, vae, "mine", "diffusers folder") == "tiue/mine-2"
    folder = output / "tiue" / "mine"
    card = (folder / "README.md").read_text()
    assert "4 decoders" in card and "stickers" in card and "patches" in card
    assert not [path for path in (output / "tiue").iterdir() if path.name.startswith(".")]
    again, picture = painted(nodes, *nodes.LoadStudent("tiue/mine"))
    assert (again - latents).abs().max() < 0.05  # the patched weight, in half precision on disk
    assert (picture - pixels).abs().max() < 0.1
    model, clip, vae = loading.load_folder(folder, dtype=torch.float32)
    ours, shown = painted(nodes, model, clip, vae)
    with torch.inference_mode(False):
        pipe = TiuePipeline.from_pretrained(folder)
        theirs = pipe(PROMPT, seed=7, output_type="latent").images
        seen = pipe(PROMPT, seed=7, output_type="pt").images
    scale = model.model.latent_format.scale_factor
    assert (ours * scale - theirs).abs().max() < TOLERANCE
    assert (shown.movedim(-1, 1) - seen).abs().max() < 1e-3
    assert pipe.config["steps"] == 4 and pipe.scheduler.config["beta_start"] == 0.00085


def test_a_folder_needs_what_tensors_do_not_say(nodes, output, monkeypatch):
    model, clip, vae = nodes.LoadStudent("stickers")
    monkeypatch.delattr(model.model.model_config, "tiue_entry")
    with pytest.raises(ValueError, match=r"this MODEL .* choose 'one checkpoint'"):
        saving.save(model, clip, vae, "mine", "diffusers folder")
    with pytest.raises(ValueError, match="layout is 'zip': choose one of"):
        nodes.SaveStudent(model, clip, vae, "mine", "zip")
    assert not list((output / "tiue").iterdir())


def test_names_that_are_none(nodes, student):
    for name in ("", "../up", "a/b"):
        with pytest.raises(ValueError, match="give a file name"):
            nodes.SaveStudent(student.model, student.clip, student.vae, name)
