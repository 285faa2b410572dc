"""What ComfyUI's save nodes and Save Student write is read back: the same latents, to the bit."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from harness import TOLERANCE, Student

import folder_paths  # isort: skip
from comfy_extras import nodes_model_merging as merging  # isort: skip

PROMPT = "a cat on a red background"


@pytest.fixture(scope="module")
def student():
    return Student(Path(os.environ["TIUE_STUDENT"]))


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    for kind in ("checkpoints", "diffusion_models", "text_encoders", "vae"):
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


@pytest.mark.parametrize("shape", [{}, {"use_linear_projection": True, "attention_head_dim": 8}])
def test_other_shapes_and_a_tiny_autoencoder(nodes, output, tmp_path, shape):
    from tiue_pack.nodes.native import loading

    with torch.inference_mode(False):
        folder = tiny.student(tmp_path / "student", tiny_vae=bool(shape), **shape)
    parts = loading.load_folder(folder)
    nodes.SaveStudent(*parts, "tiny")
    again = nodes.LoadStudent("checkpoints/tiny.safetensors")
    for ours, theirs in zip(painted(nodes, *again), painted(nodes, *parts), strict=True):
        assert torch.equal(ours, theirs)


def test_names_that_are_none(nodes, student):
    for name in ("", "../up", "a/b"):
        with pytest.raises(ValueError, match="give a file name"):
            nodes.SaveStudent(student.model, student.clip, student.vae, name)
