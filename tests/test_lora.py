"""LoRA training: pictures, names, resume, what can be wrong."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_kill import LORA, dying
from PIL import Image
from safetensors.torch import load_file

from tiue_core import students
from tiue_core.core.forward_process import Noising
from tiue_core.errors import TiueError
from tiue_core.students.lora import Lora, load_loras
from tiue_core.train.loop import LossError, Stopped
from tiue_core.train.lora import stages
from tiue_core.train.lora.kohya import kohya_tensors, lora_parameters, write
from tiue_core.train.lora.memory import Estimate
from tiue_core.train.lora.pictures import bucket_of, read_pictures
from tiue_core.train.lora.run import (
    check_loads,
    loss_curve,
    run_folder,
    train_lora,
)
from tiue_core.train.recipe import LoraRecipe, checked
from tiue_core.train.rehearsal import Live

SMALL = {"steps": 2, "student_steps": 2, "batch_size": 1, "priors": 2, "pairs": 2, "rank": 2,
         "alpha": 2, "pair_steps": 2, "targets": ["to_k", "conv1"], "checkpoint_every": 1,
         "sample_every": 100}  # fmt: skip


def test_a_style_has_settings_of_its_own() -> None:
    given = {"out": "a.safetensors", "images": "a"}
    thing, style = (checked(LoraRecipe, {**given, "style": is_style}) for is_style in (False, True))
    assert (thing.prior, thing.steps) == (1.0, 600) and (style.prior, style.steps) == (0.0, 400)
    own = checked(LoraRecipe, {**given, "style": True, "steps": 7, "prior": 0.5})
    assert (own.prior, own.steps) == (0.5, 7)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures of three shapes with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, size in (("a", (128, 128)), ("b", (300, 200)), ("c", (90, 160))):
        pixels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a zorb, picture {name}")
    return folder


@pytest.fixture
def recipe(images: Path, tmp_path: Path) -> Callable[..., LoraRecipe]:
    def make(name: str = "out", **changes: Any) -> LoraRecipe:
        given = {**SMALL, "images": images, "out": tmp_path / f"{name}.safetensors"}
        return LoraRecipe(trigger="zorb", **{**given, **changes})  # type: ignore[arg-type]

    return make


# --- pictures ------------------------------------------------------------------------------


def read(folder: Path, trigger: str | None = "zorb") -> Any:
    return read_pictures(folder, trigger, side=128, multiple=32)


def test_buckets_keep_shape_and_never_have_more_pixels() -> None:
    for width, height in ((128, 128), (300, 200), (90, 160), (1000, 10), (7, 9)):
        w, h = bucket_of(width, height, side=512, multiple=64)
        assert w % 64 == h % 64 == 0 and w * h <= 512**2
        assert (w >= h) == (width >= height) or w == h
    assert bucket_of(100, 100, side=512, multiple=64) == (512, 512)


def test_the_trigger_goes_before_captions_that_lack_it(images: Path) -> None:
    (images / "b.txt").write_text("on a table")
    (images / "c.txt").unlink()
    assert read(images).captions == ["a zorb, picture a", "zorb, on a table", "zorb"]


def test_a_picture_with_transparency_stands_on_white(images: Path) -> None:
    Image.new("RGBA", (128, 128), (255, 0, 0, 0)).save(images / "a.png")
    assert read(images).items[0].open().getpixel((5, 5)) == (255, 255, 255)


def test_the_hash_knows_pictures_and_captions(images: Path) -> None:
    before = read(images).content_hash()
    (images / "a.txt").write_text("another zorb")
    assert read(images).content_hash() != before


def _one(folder: Path) -> None:
    for name in "bc":
        (folder / f"{name}.png").unlink()


def _corrupt(folder: Path) -> None:
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    (folder / "c.png").write_bytes(b"not a picture")


def _bare(folder: Path) -> None:
    (folder / "b.txt").unlink()


def _twins(folder: Path) -> None:
    Image.open(folder / "a.png").save(folder / "a.jpg")


def _videos(folder: Path) -> None:
    for file in folder.glob("*.png"):
        file.rename(file.with_suffix(".mp4"))


def _emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_one, "holds 1 image, which is too little"),
        (_corrupt, r"b\.png .*c\.png .*repair them"),
        (_bare, r"no caption beside b\.png"),
        (_twins, r"a\.jpg, a\.png would share one caption"),
        (_videos, "videos and no images"),
        (_emptied, "holds no images"),
    ],
)
def test_bad_folders_are_refused_in_one_line(
    images: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(images)
    with pytest.raises(TiueError, match=message) as error:
        read(images, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_teacher_of_one_variant_alone(tmp_path: Path, variant: str) -> None:
    import helpers_students as helpers
    from diffusers import UNet2DConditionModel

    from tiue_core.train.lora.run import load_teacher

    folder = helpers.make_student(tmp_path / "teacher", fp16=variant == "fp16")
    if variant == "bf16":
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        unet.save_pretrained(folder / "unet", variant="bf16")
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet", variant=variant)
    recipe: Any = LoraRecipe(
        student=str(folder), teacher=str(folder), out=tmp_path / "a.safetensors", images=tmp_path
    )
    ours = load_teacher(recipe, students.load(folder, device="cpu"), False).state_dict()
    for name, tensor in theirs.float().state_dict().items():
        assert torch.equal(ours[name], tensor)


# --- training ------------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill: nobody gets to tidy up."""


@pytest.mark.parametrize("method", ["transfer", "one-pass", "paired"])
def test_killed_and_resumed_gives_the_same_weights(
    recipe: Callable[..., LoraRecipe], method: str
) -> None:
    whole = load_file(train_lora(recipe("whole", method=method)))
    cut = recipe("cut", method=method)
    for death in (1, 3) if method != "transfer" else (1,):

        def die(done: int, total: int, values: Any, death: int = death) -> None:
            if done == death + 1:  # the checkpoint of `death` is there, that of this one is not
                raise Killed

        with pytest.raises(Killed):
            train_lora(cut, die)
        assert not cut.out.exists()
    resumed = load_file(train_lora(cut))
    assert resumed.keys() == whole.keys()
    assert max((resumed[key] - whole[key]).abs().max() for key in whole) == 0
    assert any(whole[key].abs().max() > 0 for key in whole if "lora_up" in key)
    assert len(loss_curve(cut.out)) == (2 if method == "transfer" else 4)


@pytest.mark.slow
def test_the_second_stage_killed_five_times_while_a_checkpoint_is_written(
    recipe: Callable[..., LoraRecipe],
) -> None:
    whole = load_file(train_lora(recipe("whole", method="one-pass", student_steps=7)))
    cut = recipe("cut", method="one-pass", student_steps=7)
    for step in range(1, 6):
        where = f"student/checkpoints/.step-{step:07d}"
        made = dying(LORA, cut.model_dump_json(), where=where, files=step % 2 + 1)
        assert made.returncode == -signal.SIGKILL, made.stderr[-2000:]
        assert not cut.out.exists()
    resumed = load_file(train_lora(cut))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert len(loss_curve(cut.out)) == 2 + 7


@pytest.mark.parametrize(
    ("method", "setting", "low", "high"),
    [
        ("transfer", "prior", 0.1, 10.0),
        ("transfer", "drop_prompt", 0.0, 1.0),
        ("one-pass", "prior", 0.1, 10.0),
        ("one-pass", "kl_weight", 0.0, 10.0),
        ("one-pass", "fake_drop_prompt", 0.0, 1.0),
        ("paired", "kl_weight", 0.0, 10.0),
    ],
)
def test_each_setting_of_the_loss_moves_what_is_learned(
    recipe: Callable[..., LoraRecipe], method: str, setting: str, low: float, high: float
) -> None:
    """Same pictures, same draws: what is learned differs by this setting alone."""
    first = 2 if method == "transfer" else 0  # what the teacher learns is not to tell them apart
    given = {"method": method, "learning_rate": 0.01, "warmup": 0, "steps": first}
    given["student_steps"] = 2
    one, other = (
        load_file(train_lora(recipe(name, **given, **{setting: value})))
        for name, value in (("low", low), ("high", high))
    )
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("method", "told"), [("transfer", True), ("one-pass", False)])
def test_what_a_teachers_lora_is_to_a_student_that_learned_on_is_said(
    recipe: Callable[..., LoraRecipe], method: str, told: bool
) -> None:
    said: list[str] = []
    train_lora(recipe(method=method, student="stickers", steps=1, student_steps=1), say=said.append)
    assert any("weak on it: --method one-pass" in line for line in said) == told


def test_a_stopped_run_says_so_and_goes_on(recipe: Callable[..., LoraRecipe]) -> None:
    one = recipe()
    with pytest.raises(Stopped, match="after 1 of 2 updates: the same command goes on"):
        train_lora(one, stop=lambda: (run_folder(one.out) / "teacher/log.jsonl").is_file())
    assert train_lora(one) == one.out and one.out.is_file()


def test_the_file_is_what_was_learned(recipe: Callable[..., LoraRecipe]) -> None:
    """Loaded, each layer has base + alpha / rank * up @ down; at strength 0 the very base."""
    one = recipe(alpha=1, learning_rate=0.1, warmup=0, decay=0)
    file = train_lora(one)
    tensors = load_file(file)
    base, pipe = (students.load("stickers", device="cpu") for _ in range(2))
    load_loras(pipe, [Lora(file)])
    prompt: dict[str, Any] = {"prompt": "a zorb", "seed": 1, "output_type": "latent"}
    for name, module in base.unet.named_modules():
        key = "lora_unet_" + name.replace(".", "_")
        if f"{key}.alpha" in tensors:
            up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
            change = up.flatten(1) @ down.flatten(1) / 2
            module.weight.data += change.view(module.weight.shape)
    loaded = pipe(**prompt).images
    assert (loaded - base(**prompt).images).abs().max() <= 1e-4
    plain = students.load("stickers", device="cpu")
    assert (loaded - plain(**prompt).images).abs().max() > 1e-3
    none = students.load("stickers", device="cpu")
    load_loras(none, [Lora(file, 0.0)])
    assert torch.equal(none(**prompt).images, plain(**prompt).images)


def test_metadata_say_how_it_was_made(recipe: Callable[..., LoraRecipe]) -> None:
    from safetensors import safe_open

    with safe_open(train_lora(recipe()), "pt") as file:
        metadata = file.metadata()
    ours = json.loads(metadata["tiue"])
    assert metadata["ss_network_dim"] == "2" and metadata["modelspec.trigger_phrase"] == "zorb"
    assert ours["trigger"] == "zorb" and len(ours["dataset_hash"]) == 64
    assert ours["settings"]["targets"] == ["to_k", "conv1"] and ours["student"] == "stickers"


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(
    recipe: Callable[..., LoraRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = stages.TransferStage._pictures
    calls = iter([False, False, True])  # the estimate, and two updates

    def spoilt(self: Any, generator: Any) -> Any:
        loss = true(self, generator)
        return loss * float("nan") if next(calls) else loss

    monkeypatch.setattr(stages.TransferStage, "_pictures", spoilt)
    one = recipe()
    told = r"At update 2 of 2 the .*nan: the last good weights are in"
    with pytest.raises(LossError, match=told):
        train_lora(one)
    assert not one.out.exists()
    kept = run_folder(one.out) / "teacher" / "result" / stages.RESULT
    assert all(tensor.isfinite().all() for tensor in load_file(kept).values())
    check_loads(one, kept)


def test_a_full_disk_is_one_line(
    recipe: Callable[..., LoraRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tiue_core.train.checkpoint.save_file", full)
    one = recipe()
    with pytest.raises(TiueError, match="no space left") as error:
        train_lora(one)
    assert "\n" not in str(error.value) and not one.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": Path("a.ckpt")}, "must end in .safetensors"),
        ({"targets": ["no_such_layer"]}, "no layer is called no_such_layer"),
        ({"prior_prompts": Path("none.txt")}, "none.txt cannot be read"),
    ],
)
def test_settings_that_cannot_be(
    recipe: Callable[..., LoraRecipe], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TiueError, match=message):
        train_lora(recipe(**changes))


def test_a_teacher_that_does_not_match(recipe: Callable[..., LoraRecipe], tmp_path: Path) -> None:
    import helpers_students as helpers

    other = helpers.make_student(tmp_path / "other")
    with pytest.raises(TiueError, match="does not match the student stickers"):
        train_lora(recipe(teacher=str(other)))
    with pytest.raises(TiueError, match=r"the teacher of .*other is not known"):
        train_lora(recipe(student=str(other)))


def test_a_run_with_other_settings_is_not_gone_on_with(
    recipe: Callable[..., LoraRecipe],
) -> None:
    with pytest.raises(Stopped):
        train_lora(recipe(), stop=lambda: True)
    with pytest.raises(TiueError, match="differs in seed"):
        train_lora(recipe(seed=5))


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(TiueError, match="rank: "):
        checked(LoraRecipe, {"out": "a.safetensors", "images": "x", "rank": 0})
    with pytest.raises(TiueError, match=r"levels is \[700, 200\]: give"):
        checked(LoraRecipe, {"out": "a.safetensors", "images": "x", "levels": [700, 200]})


def test_pictures_are_learned_at_the_levels_asked_for(
    recipe: Callable[..., LoraRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    true = Noising.add

    def add(self: Any, clean: Any, noise: Any, timesteps: Any) -> Any:
        drawn.extend(timesteps.tolist() if isinstance(timesteps, torch.Tensor) else ())
        return true(self, clean, noise, timesteps)

    one = recipe(levels=(400, 402), batch_size=8, prior=0)
    monkeypatch.setattr("tiue_core.train.lora.run.estimate", lambda *_: Estimate(0, 0, 0))
    monkeypatch.setattr(Noising, "add", add)
    train_lora(one)
    assert len(drawn) == 16 and set(drawn) == {400, 401}


def test_live_counts_what_lives_at_once() -> None:
    with Live() as live:
        a = torch.zeros(1000)
        b = a + 1  # both live
        del a
        c = b.view(10, 100) * 2  # the view is no storage of its own
        del b, c
    assert live.peak == 2 * 4000 and live.bytes == 0


def test_every_layer_has_a_name_of_its_own() -> None:
    """Dots become underscores, so two layers could fall together."""
    unet = students.load("stickers", device="cpu").unet
    unet.requires_grad_(False)
    stages.adapt(unet, LoraRecipe(out=Path("a.safetensors"), images=Path("x")))
    tensors = kohya_tensors(unet, 16)
    assert len(tensors) == len(lora_parameters(unet)) * 3 // 2


@pytest.mark.parametrize("linear", [False, True], ids=["sd15", "sd21"])
def test_every_layer_loads_in_both_layouts(
    recipe: Callable[..., LoraRecipe], tmp_path: Path, linear: bool
) -> None:
    """Whoever made it, a LoRA in kohya's names for the base model fits the student whole."""
    import helpers_students as helpers

    folder = helpers.make_student(tmp_path / "student", linear=linear)
    unet = students.load(folder, device="cpu").unet.requires_grad_(False)
    one = recipe(student=str(folder), targets=LoraRecipe.model_fields["targets"].default)
    stages.adapt(unet, one)
    write(tmp_path / "a.safetensors", kohya_tensors(unet, 2), {})
    check_loads(one, tmp_path / "a.safetensors")
