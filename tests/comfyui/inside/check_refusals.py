"""Bad input: one line that says what is wrong and what to do."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from harness import Student

import comfy.model_management as memory  # isort: skip
import nodes as stock  # isort: skip
from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced  # isort: skip

PROMPT = "a star"


@pytest.fixture(scope="module")
def student():
    return Student(Path(os.environ["TIUE_STUDENT"]))


def refused(match):
    class OneLine:
        def __init__(self):
            self.context = pytest.raises(Exception, match=match)

        def __enter__(self):
            self.info = self.context.__enter__()

        def __exit__(self, *error):
            caught = self.context.__exit__(*error)
            assert "\n" not in str(self.info.value)
            return caught

    return OneLine()


@pytest.fixture
def positive(student):
    return student.condition(PROMPT)


NO_UNETS = {
    "Flux": {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 8,
        "context_in_dim": 8,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": False,
    },
    "SD3": {
        "in_channels": 16,
        "patch_size": 2,
        "depth": 1,
        "input_size": None,
        "adm_in_channels": 8,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 8, "out_features": 64},
        },
    },
}


@pytest.fixture(params=NO_UNETS)
def not_a_unet(request):
    """A small MODEL of ComfyUI's own Flux or SD3, in the patcher that its loaders use."""
    import comfy.model_patcher
    import comfy.supported_models
    from comfy.ldm.flux.model import FluxParams

    shape = dict(NO_UNETS[request.param])
    if request.param == "Flux" and "txt_ids_dims" in FluxParams.__dataclass_fields__:
        shape["txt_ids_dims"] = []  # newer versions ask for it
    config = getattr(comfy.supported_models, request.param)(shape)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, "")
    cpu = torch.device("cpu")
    return request.param, comfy.model_patcher.ModelPatcher(model, cpu, cpu)


@pytest.fixture
def inpainting(tmp_path):
    with torch.inference_mode(False):
        return tiny.student(tmp_path / "inpainting", in_channels=9)


def test_no_unet(nodes, not_a_unet, positive, student):
    name, model = not_a_unet
    features = nodes.Encode(student.model, positive, student.latent(), 0)
    for call in (
        lambda: nodes.OnePassSampler(model, positive, student.latent(), 0),
        lambda: nodes.PatchModel(model),
        lambda: nodes.Sigmas(model),
        lambda: nodes.Encode(model, positive, student.latent(), 0),
        lambda: nodes.Decode(model, features, positive),
        lambda: sampled_with_basic_guider(model, positive, nodes, torch.ones(5), student.latent()),
    ):
        with refused(f"is a {name}, not a U-Net .* connect the MODEL of Load Student"):
            call()


def test_inpainting(nodes, inpainting, positive, student):
    from tiue_pack.nodes.native import loading

    model, _, _ = loading.load_folder(inpainting, dtype=torch.float32)
    with refused("takes 9 channels .* connect the MODEL of Load Student"):
        nodes.OnePassSampler(model, positive, student.latent(), 0)


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 4, 1, 16, 16)])
def test_latent_of_another_model(nodes, student, positive, shape):
    with refused("the student wants 4 channels: use Empty Latent Image"):
        nodes.OnePassSampler(student.model, positive, {"samples": torch.ones(shape)}, 0)


def test_latent_that_holds_a_picture(nodes, student, positive):
    with refused("paints from pure noise only: connect Empty Latent Image"):
        nodes.OnePassSampler(student.model, positive, {"samples": torch.ones(1, 4, 16, 16)}, 0)


def test_latent_with_a_mask(nodes, student, positive):
    latent = {**student.latent(), "noise_mask": torch.ones(1, 1, 16, 16)}
    with refused("has a noise mask, .* remove the mask"):
        nodes.OnePassSampler(student.model, positive, latent, 0)


def test_guidance_without_a_negative(nodes, student, positive):
    with refused("guidance is 3 .* or set guidance to 1"):
        nodes.OnePassSampler(student.model, positive, student.latent(), 0, guidance=3.0)


def test_features_of_another_model(nodes, student, positive, tmp_path):
    with torch.inference_mode(False):
        other = Student(tiny.student(tmp_path / "other", seed=1))
    features = nodes.Encode(student.model, positive, student.latent(), 0)
    with refused("come from another model .* same Load Student"):
        nodes.Decode(other.model, features, positive)


def test_predictions_of_other_features(nodes, student, positive):
    one = nodes.Encode(student.model, positive, student.latent(), 0)
    two = nodes.Encode(student.model, positive, student.latent(), 1)
    with refused("same TIUE_FEATURES"):
        nodes.Decode(student.model, two, positive, "1", nodes.Decode(student.model, one, positive))


@pytest.mark.parametrize(
    "weights, match",
    [("1, 1, 1", "3 numbers for 4 decoders: give 4"), ("1, x, 1, 1", "give numbers, such as 1, 1")],
)
def test_weights(nodes, student, positive, weights, match):
    features = nodes.Encode(student.model, positive, student.latent(), 0)
    predictions = nodes.Decode(student.model, features, positive)
    with refused(match):
        nodes.Combine(predictions, weights)


@pytest.mark.parametrize(
    "timesteps, match", [("1000", "from 0 to 999"), ("-1", "from 0"), ("soon", "give numbers")]
)
def test_timesteps(nodes, student, positive, timesteps, match):
    features = nodes.Encode(student.model, positive, student.latent(), 0)
    with refused(match):
        nodes.Decode(student.model, features, positive, timesteps)


def test_several_prompts_at_once(nodes, student, positive):
    both = stock.ConditioningCombine().combine(
        stock.ConditioningSetArea().append(positive, 64, 128, 0, 0, 1.0)[0], positive
    )[0]
    with refused("asks for 2 model calls .* one whole prompt each"):
        nodes.Encode(student.model, both, student.latent(), 0)


@pytest.mark.parametrize("options", [{"steps": 2}, {"scheduler": "ddim_uniform"}])
def test_ksampler_set_wrongly(nodes, student, positive, options):
    options = {"steps": 1, "scheduler": "normal", **options}
    model = nodes.PatchModel(student.model)
    with refused("set steps to 1 and denoise to 1"):
        stock.common_ksampler(
            model,
            0,
            options["steps"],
            1.0,
            "euler",
            options["scheduler"],
            positive,
            positive,
            student.latent(),
        )


def sampled_with_basic_guider(model, positive, nodes, sigmas, latent):
    guider = BasicGuider()
    guider = (getattr(guider, "get_guider", None) or guider.execute)(model, positive)[0]
    sampler = SamplerCustomAdvanced()
    run = getattr(sampler, "sample", None) or sampler.execute
    return run(nodes.Noise(0), guider, nodes.Sampler(), sigmas, latent)


def test_sigmas_of_another_schedule(nodes, student, positive):
    for sigmas in (torch.tensor([14.6, 4.0, 1.0, 0.0]), torch.tensor([4.1])):
        with refused("not the student's: connect One-Pass Sigmas"):
            sampled_with_basic_guider(student.model, positive, nodes, sigmas, student.latent())


def test_image_that_is_not_in_the_batch(nodes, student, positive):
    features = nodes.Encode(student.model, positive, student.latent(2), 0)
    with refused("the batch has 2: give 0 to 1"):
        nodes.FeatureAtlas(features, image=2)


# --- loading -------------------------------------------------------------------------------


@pytest.fixture
def in_models(student, tmp_path):
    """A copy of the student in a model folder of its own."""
    import folder_paths

    target = tmp_path / "extra" / "mine"
    shutil.copytree(student.folder, target)
    folder_paths.add_model_folder_path("tiue", str(tmp_path / "extra"))
    yield target
    folder_paths.folder_names_and_paths["tiue"][0].remove(str(tmp_path / "extra"))


def test_students_are_found_and_loaded(nodes, in_models):
    from tiue_pack.nodes import folders
    from tiue_pack.nodes.load import LoadStudent

    assert folders.choices()[0] == "stickers" and "tiue/mine" in folders.choices()
    assert LoadStudent.validate_inputs("tiue/mine") is True
    for choice in ("tiue/mine", "stickers", "stickers-teacher"):
        assert LoadStudent.validate_inputs(choice) is True
        stamp = LoadStudent.fingerprint_inputs(choice)
        assert len(stamp) == 16 and int(stamp, 16) >= 0  # no paths: it goes into pictures
        model, clip, vae = nodes.LoadStudent(choice)
        assert None not in (model, clip, vae)
    before = LoadStudent.fingerprint_inputs("tiue/mine")
    (in_models / "scheduler" / "scheduler_config.json").touch()
    assert LoadStudent.fingerprint_inputs("tiue/mine") != before


def test_student_that_vanished(nodes, in_models):
    from tiue_pack.nodes.load import LoadStudent

    shutil.rmtree(in_models)
    assert "press R to refresh" in LoadStudent.validate_inputs("tiue/mine")
    with refused("is gone from ComfyUI's model folders"):
        nodes.LoadStudent("tiue/mine")


def test_weights_that_vanished(nodes, in_models):
    for file in (in_models / "unet").glob("*.safetensors"):
        file.unlink()
    with refused(r"has no .safetensors file"):
        nodes.LoadStudent("tiue/mine")


def test_truncated_weights(nodes, in_models):
    file = next((in_models / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with refused("it is truncated"):
        nodes.LoadStudent("tiue/mine")


def test_config_of_another_shape(nodes, in_models):
    import json

    file = in_models / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layers_per_block": 2}))
    with refused("do not belong together"):
        nodes.LoadStudent("tiue/mine")


def test_licence_is_asked_for(nodes, monkeypatch, tmp_path):
    from tiue_pack.tiue_core import hub

    monkeypatch.setattr(hub, "cached", lambda *_: None)
    monkeypatch.setattr(
        hub, "download", lambda hub_id, revision, accept, terms, bar: accept(terms) and tmp_path
    )
    with refused("CC BY-NC 4.0.*Switch accept_licence on"):
        nodes.LoadStudent("loopfree-sd1.5")


@pytest.fixture
def small_hub(student, tmp_path, monkeypatch):
    """A hub that hands out the student in two halves, and what the node shows of that."""
    import huggingface_hub
    from huggingface_hub import constants

    import comfy.utils  # isort: skip

    shown = []
    names = [str(p.relative_to(student.folder)) for p in student.folder.rglob("*") if p.is_file()]

    def model_info(self, *_, **__):
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha="1" * 40, siblings=siblings, card_data=None)

    def snapshot_download(hub_id, *, revision, allow_patterns, tqdm_class):
        with tqdm_class(total=200, unit="B", desc="Downloading bytes") as bar:
            bar.update(100)
            bar.update(100)
        target = tmp_path / revision
        for name in allow_patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(student.folder / name, target / name)
        return str(target)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hook = lambda value, total, *_, **__: shown.append((value, total))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return shown


def test_a_download_shows_its_progress_and_is_pinned(nodes, small_hub, tmp_path):
    model, _, _ = nodes.LoadStudent("loopfree-sd1.5", accept_licence=True)
    assert model is not None
    assert small_hub == [(100, 200), (200, 200)]
    assert "1" * 40 in (tmp_path / "tiue-students.json").read_text()


def test_a_download_can_be_interrupted(nodes, small_hub, monkeypatch):
    import comfy.utils

    def interrupted(*_, **__):
        raise memory.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupted)
    with pytest.raises(memory.InterruptProcessingException):
        nodes.LoadStudent("loopfree-sd1.5", accept_licence=True)
