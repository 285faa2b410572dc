"""What runs beside a student must not change its picture; what does not act says so."""

import os
from pathlib import Path

import matrix as ways
import pytest
import torch
from harness import TOLERANCE

import nodes as stock  # isort: skip
from comfy_extras import nodes_sag, nodes_tomesd  # isort: skip

PROMPT, SEED = ways.PROMPT, ways.SEED


@pytest.fixture(scope="module")
def matrix():
    return ways.Matrix(Path(os.environ["TIUE_STUDENT"]))


@pytest.fixture(scope="module")
def student(matrix):
    return matrix.student


@pytest.mark.parametrize("cell", ways.cells(full=False), ids=lambda cell: ", ".join(cell))
def test_no_cell_is_a_wrong_picture(matrix, cell):
    found = matrix.cell(*cell)
    print(found)
    if found.sampler in ("uni_pc", "uni_pc_bh2", "dpm_fast", "dpm_adaptive"):
        assert found.outcome == "refused" and found.sampler in found.line
    elif cell[0] == ways.STOCK[1] and found.patch not in ("none", "rescale cfg"):
        assert found.outcome == "refused" and "put that node before Patch Model" in found.line
    elif "playground" in found.patch and cell[0] != ways.STOCK[0]:
        assert found.outcome == "refused" and "latents of another model" in found.line
    else:
        assert found.outcome == ("equal" if found.patch in ("none", "rescale cfg") else "note")


@pytest.fixture
def foreign(matrix):
    """Another branch's clone is loaded, with v-prediction and the latents of another model."""
    yield matrix.before
    matrix.before("nothing")


def test_a_plain_model_predicts_what_it_predicts_whatever_is_loaded(nodes, student, foreign):
    model = student.model.clone()
    model.attachments.clear()
    foreign("v_prediction")
    out = ksampled(nodes, student, student.condition(PROMPT), model=nodes.PatchModel(model))
    assert student.difference(out, student.reference(PROMPT, SEED)) <= TOLERANCE


def test_latents_have_their_own_scale_whatever_is_loaded(nodes, student, foreign):
    positive = student.condition(PROMPT)
    picture = nodes.OnePassSampler(student.model, positive, student.latent(), SEED)
    alone = nodes.Invert(student.model, positive, picture, SEED, 2).noise
    foreign("continuous edm_playground_v2.5")
    assert torch.equal(nodes.Invert(student.model, positive, picture, SEED, 2).noise, alone)
    foreign("continuous edm_playground_v2.5")
    out = ksampled(nodes, student, positive)
    assert student.difference(out, student.reference(PROMPT, SEED)) <= TOLERANCE


@pytest.fixture
def told(matrix):
    with matrix.notes.collected() as lines:
        yield lines


def ksampled(nodes, student, positive, cfg=1.0, model=None, latent=None, **options):
    model = nodes.PatchModel(student.model) if model is None else model
    latent = student.latent() if latent is None else latent
    given = (model, SEED, 1, cfg, "euler", "normal", positive, positive, latent)
    return stock.common_ksampler(*given, **options)[0]["samples"]


def ranged(conditioning, start, end):
    return stock.ConditioningSetTimestepRange().set_range(conditioning, start, end)[0]


PAINTED = {
    "node": lambda nodes, student, positive: nodes.OnePassSampler(
        student.model, positive, student.latent(), SEED
    )["samples"],
    "ksampler": ksampled,
}


@pytest.mark.parametrize("way", PAINTED)
def test_a_prompt_range_says_that_it_does_not_act(nodes, student, told, way):
    late = ranged(student.condition("a dog"), 0.5, 1.0)
    both = ranged(student.condition(PROMPT), 0.0, 0.5) + late
    out = PAINTED[way](nodes, student, both)
    assert student.difference(out, student.reference(PROMPT, SEED)) <= TOLERANCE
    assert [line for line in told if "prompt with range 0.5 to 1 does not act" in line]
    assert [line for line in told if "prompt with range 0 to 0.5 acts on the whole" in line]


@pytest.mark.parametrize("way", PAINTED)
def test_prompts_of_which_none_acts_are_refused(nodes, student, way):
    with pytest.raises(ValueError, match=r"No prompt acts .* a range that starts at 0"):
        PAINTED[way](nodes, student, ranged(student.condition(PROMPT), 0.5, 1.0))


@pytest.mark.parametrize("start, acts", [(0.0, True), (0.2, True), (0.3, False)])
def test_a_controlnet_range(nodes, student, told, tmp_path, start, acts):
    import comfy.controlnet
    import tiny

    with torch.inference_mode(False):
        file = tmp_path / "control.safetensors"
        tiny.control_lora(file, student.pipe.unet)
    control = comfy.controlnet.load_controlnet(str(file))
    hint = torch.rand(1, 128, 128, 3)
    positive = student.condition(PROMPT)
    positive, _ = stock.ControlNetApplyAdvanced().apply_controlnet(
        positive, positive, control, hint, 1.0, start, 0.9
    )
    PAINTED["node"](nodes, student, positive)
    how = "acts on the whole picture" if acts else "does not act"
    assert [line for line in told if f"ControlNet with range {start:g} to 0.9 {how}" in line]


def test_a_keyframe_says_that_it_does_not_act(nodes, student, told):
    import comfy.hooks

    frames = comfy.hooks.HookKeyframeGroup()
    for start in (0.0, 0.5):
        frames.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=start))
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    hooks.set_keyframes_on_hooks(frames)
    positive = comfy.hooks.set_hooks_for_conditioning(student.condition(PROMPT), hooks)
    PAINTED["node"](nodes, student, positive)
    assert [line for line in told if "the keyframe with range 0.5 to 1 does not act" in line]


def test_cfg_says_what_it_does(nodes, student, told):
    ksampled(nodes, student, student.condition(PROMPT), cfg=7.0)
    assert [line for line in told if "cfg is 7" in line]


def test_a_picture_in_the_latent_is_refused_by_the_stock_sampler_too(nodes, student):
    positive = student.condition(PROMPT)
    with pytest.raises(ValueError, match=r"holds a picture, .* connect Empty Latent Image"):
        ksampled(nodes, student, positive, latent={"samples": torch.ones(1, 4, 16, 16)})
    masked = {**student.latent(), "noise_mask": torch.ones(1, 1, 16, 16)}
    with pytest.raises(ValueError, match="has a noise mask"):
        ksampled(nodes, student, positive, latent=masked)


def test_a_patch_that_needs_a_negative_asks_for_one(nodes, student):
    model = nodes_sag.SelfAttentionGuidance()
    model = (getattr(model, "patch", None) or model.execute)(student.model, 0.5, 2.0)[0]
    positive, latent = student.condition(PROMPT), student.latent()
    with pytest.raises(ValueError, match="works with a negative prompt, and there is none"):
        nodes.OnePassSampler(model, positive, latent, SEED)


def test_a_model_that_is_no_student_says_so(nodes, student, told):
    model = student.model.clone()
    model.attachments.clear()
    nodes.OnePassSampler(model, student.condition(PROMPT), student.latent(), SEED)
    assert [line for line in told if "not known to be a one-pass student" in line]


LARGE = {"samples": torch.zeros(1, 4, 16, 16)}


@pytest.fixture(scope="module")
def attentive(tmp_path_factory):
    """A MODEL that attends at full size, where ToMe merges."""
    import tiny
    from harness import loading

    with torch.inference_mode(False):
        folder = tiny.student(
            tmp_path_factory.mktemp("attentive") / "student",
            down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        )
        return loading.load_folder(folder, dtype=torch.float32)[0]


@pytest.mark.parametrize("way", ["node", "calls", "ksampler"])
def test_the_same_seed_is_the_same_picture_with_patches_that_draw(nodes, student, attentive, way):
    patch, positive, latent = nodes_tomesd.TomePatchModel(), student.condition(PROMPT), LARGE
    model = (getattr(patch, "patch", None) or patch.execute)(attentive, 0.5)[0]

    def paint():
        if way == "node":
            return nodes.OnePassSampler(model, positive, latent, SEED)["samples"]
        if way == "ksampler":
            patched = nodes.PatchModel(model)
            return ksampled(nodes, student, positive, model=patched, latent=latent)
        features = nodes.Encode(model, positive, latent, SEED)
        return nodes.Combine(nodes.Decode(model, features, positive))["samples"]

    torch.manual_seed(1)
    first = paint()
    torch.manual_seed(2)
    assert torch.equal(first, paint())
    plain = nodes.OnePassSampler(attentive, positive, latent, SEED)["samples"]
    assert (first - plain).abs().max() > 100 * TOLERANCE  # it does act


def test_an_empty_latent_of_another_family_is_taken(nodes, student, told):
    latent = {"samples": torch.zeros(1, 16, 16, 16), "downscale_ratio_spacial": 8}
    out = nodes.OnePassSampler(student.model, student.condition(PROMPT), latent, SEED)
    assert student.difference(out["samples"], student.reference(PROMPT, SEED)) <= TOLERANCE


def test_errors_have_a_plain_type_name():
    from tiue_pack.nodes.native.notes import checks
    from tiue_pack.tiue_core.errors import TiueError

    for kind in (TiueError, checks.OtherNoiseLevel):
        assert "tiue_pack" not in kind.__module__ and "/" not in kind.__module__


def test_the_node_that_encodes_a_prompt_says_which_words_are_not_known(nodes):
    from tiue_pack.nodes.native.notes import collected

    _, clip, _ = nodes.LoadStudent("stickers")
    encode = stock.CLIPTextEncode().encode
    with collected() as lines:
        encode(clip.clone(), "a (cat:1.2) on a blue background")
    assert lines == []
    with collected() as lines:
        encode(clip.clone(), "a dragon in space")
    assert len(lines) == 1 and "does not know the prompt's 'dragon', 'in', 'space'" in lines[0]


def test_a_size_far_from_the_trained_one_is_told(nodes, student, told):
    positive, wide = student.condition(PROMPT), {"samples": torch.zeros(1, 4, 16, 48)}
    nodes.OnePassSampler(student.model, positive, student.latent(), SEED)
    assert told == []
    nodes.OnePassSampler(student.model, positive, wide, SEED)
    ksampled(nodes, student, positive, latent=wide)
    assert len(told) == 2 and all("384 x 128 is far from the 128 x 128" in line for line in told)
