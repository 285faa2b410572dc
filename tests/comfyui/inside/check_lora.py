"""A LoRA that was trained here: every key through the stock loader, the picture the pipeline's."""

import pytest
import torch
from harness import ROOT, TOLERANCE
from PIL import Image

import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import folder_paths  # isort: skip

PROMPT = "a zorb on a blue background"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """ComfyUI's input and output folders, with three captioned pictures in `input/zorbs`."""
    folder = tmp_path / "input" / "zorbs"
    folder.mkdir(parents=True)
    for number, colour in enumerate(((200, 30, 30), (30, 200, 30), (30, 30, 200))):
        Image.new("RGB", (128, 128), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorb, number {number}")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


def train(nodes, method="transfer", student="stickers", **settings):
    given = {"steps": 3, "student_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "rank": 4}
    given |= {"gradient_checkpointing": False, "seed": 0, "method": method, "trigger": "zorb"}
    return nodes.TrainLora(images="zorbs", student=student, **{**given, **settings})


@pytest.mark.parametrize("method", ["transfer", "paired"])
def test_every_key_loads_in_the_stock_loader(nodes, student, pictures, method, caplog):
    if student.folder != ROOT / "tiue_core" / "stickers" / "student":
        pytest.skip("the teacher of the random one is not known")
    plain = nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(), 3)
    lora, loss, steps = train(nodes, method, priors=4, pairs=2)
    assert steps == len(loss["loss"]) == (3 if method == "transfer" else 5)
    layers = sum(key.endswith(".alpha") for key in lora)
    assert layers > 50 and torch.is_inference_mode_enabled()

    caplog.clear()
    model, _ = comfy.sd.load_lora_for_models(student.model, None, lora, 1.0, 0)
    assert len(model.patches) == layers
    assert not [r for r in caplog.records if "not loaded" in r.getMessage()]
    out = nodes.OnePassSampler(model, student.condition(PROMPT), student.latent(), 3)
    assert student.distance(out["samples"], plain["samples"] * student.scale) > 100 * TOLERANCE

    (file,) = (pictures / "output" / "loras").glob("*.safetensors")
    pipe = student.pipe
    with torch.inference_mode(False):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    try:
        assert student.difference(out["samples"], student.reference(PROMPT, 3)) <= TOLERANCE
    finally:
        pipe.unload_lora_weights()


def test_an_interrupt_ends_it_and_queueing_again_goes_on(nodes, student, pictures, monkeypatch):
    from comfy import model_management as memory

    if student.folder != ROOT / "tiue_core" / "stickers" / "student":
        pytest.skip("once is enough")
    from tiue_pack.nodes.native import training

    seen = []

    class Bar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, done, total):
            seen.append(done)
            if len(seen) == 1:
                memory.interrupt_current_processing(True)

    monkeypatch.setattr(training.comfy.utils, "ProgressBar", Bar)
    with pytest.raises(memory.InterruptProcessingException):
        train(nodes, priors=4)
    memory.interrupt_current_processing(False)
    _, loss, _ = train(nodes, priors=4)
    assert seen == [1, 2, 3] and len(loss["loss"]) == 3


def test_bad_pictures_are_one_line(nodes, student, pictures):
    for file in (pictures / "input" / "zorbs").glob("*.png"):
        file.rename(file.with_suffix(".mp4"))
    with pytest.raises(Exception, match="videos and no images"):
        train(nodes)
