"""What a training run looks at: its own pictures while it runs, and a folder of real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from small import small_clip, small_unet

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.train import validate
from tiue_core.train.loop import train
from tiue_core.train.real_images import captions_of
from tiue_core.train.recipe import DistillRecipe
from tiue_core.train.tasks.distill import DistillTask


@pytest.fixture
def settings(pipe: Any, tmp_path: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    pipe.unet = small_unet(norm_num_groups=4, sample_size=16)
    pipe.save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fox\na bee\n")
    return {
        "task": "distill",
        "out": tmp_path / "run",
        "teacher": str(tmp_path / "teacher"),
        "prompts": str(tmp_path / "prompts.txt"),
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1.0e-3,
        "lora_rank": 2,
        "lora_alpha": 2,
        "log_every": 1,
        "validate_count": 16,
    }


def logged(recipe: DistillRecipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (recipe.out / "log.jsonl").read_text().splitlines()]


# --- its own pictures ----------------------------------------------------------------------


def test_the_judge_sees_what_the_student_paints(settings: dict[str, Any]) -> None:
    """The figures of the log, made again by the pipeline from the finished student."""
    from tiue_core.evaluate.metrics import frechet_distance
    from tiue_core.evaluate.stickers import look
    from tiue_core.stickers.judge import Judge, labels, right
    from tiue_core.stickers.world import World

    del settings["prompts"]
    recipe = DistillRecipe(**settings, world={}, validate_every=2)
    student = TiuePipeline.from_pretrained(train(recipe, DistillTask))
    first, second = logged(recipe)
    assert "val_fid" not in first and {"val_fid", "val_fidelity"} <= second.keys()

    world = World(24, 8, pairs=0)
    scenes = world.scenes(16, validate.SEED)
    noise = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(validate.SEED))
    images = student([s.caption for s in scenes], latents=noise, output_type="pt").images
    judge = Judge.load()
    things, background, features = look(judge, images * 2 - 1)
    hits, grounds = right((things, background), labels(world, scenes))
    rendered = [np.asarray(s.render()) for s in world.scenes(16, validate.SEED + 1)]
    pixels = torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2) / 127.5 - 1
    fid = frechet_distance(look(judge, pixels)[2], features)
    assert second["val_fid"] == pytest.approx(fid, rel=1e-3)
    assert second["val_fidelity"] == pytest.approx(float((hits & grounds).float().mean()))


def test_clip_sees_them_where_there_is_no_judge(settings: dict[str, Any], tmp_path: Path) -> None:
    """Without the CLIP term too: it is asked, and learned from by nobody."""
    folder = tmp_path / "clip"
    small_clip(folder)
    recipe = DistillRecipe(**settings, validate_every=1, clip_model=str(folder))
    train(recipe, DistillTask)
    for line in logged(recipe):
        assert -1 <= line["val_clip"] <= 1 and "clip" not in line


# --- a folder of real images ---------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, draw = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for index, (w, h) in enumerate([(200, 140), (130, 260), (128, 128)]):
        noise = draw.integers(0, 255, (h // 10, w // 10, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((w, h)).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": ["a cat", "a dog", "a fox"][index]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_images_are_their_middle_square_in_latents(settings: dict[str, Any], photos: Path) -> None:
    paired = {"pairs": 4, "pair_steps": 2, "adversarial": 0.5}
    recipe = DistillRecipe(**settings, **paired, images=photos, images_share=0.5)
    train(recipe, DistillTask)
    assert all(line["critic"] > 0 for line in logged(recipe))
    task = DistillTask(recipe)
    task.prepare(Accelerator(cpu=True))  # reads what the run kept
    crops = [(30, 0, 170, 140), (0, 65, 130, 195), (0, 0, 128, 128)]
    for index, box in enumerate(crops):
        with Image.open(photos / f"{index}.png") as image:
            square = image.crop(box).resize((128, 128), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        vae = task.pipeline.vae
        with torch.no_grad():
            wanted = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        error = (task.shown.images.latents[index] - wanted[0]).abs().max()
        assert error <= 0.03 * wanted.abs().max()  # half precision, and one level of rounding
    texts = task.pipeline.tokenizer.batch_decode(task.shown.images.tokens, skip_special_tokens=True)
    assert [text.replace(" ", "") for text in texts] == ["acat", "adog", "afox"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not lines of JSON"),
        ('{"file_name": "0.png"}', "is not lines of JSON"),
        ('{"file_name": "9.png", "text": "a cat"}', "lacks 9.png"),
        ("\n", "names no image"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(
    photos: Path, metadata: str | None, words: str
) -> None:
    (photos / "metadata.jsonl").unlink()
    if metadata is not None:
        (photos / "metadata.jsonl").write_text(metadata)
    with pytest.raises(TiueError, match=words) as caught:
        captions_of(photos)
    assert "\n" not in str(caught.value)


def test_a_student_inherits_what_another_learned(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its start is this teacher plus (a student minus the teacher that one was made from)."""
    teacher = TiuePipeline.from_pretrained(settings["teacher"]).unet
    torch.manual_seed(5)
    before = small_unet(norm_num_groups=4, sample_size=16)
    before.save_pretrained(tmp_path / "before")
    heir = small_unet(norm_num_groups=4, sample_size=16)
    heir.save_pretrained(tmp_path / "heir")
    settings |= {"init": tmp_path / "heir", "init_teacher": tmp_path / "before"}
    student = DistillTask(DistillRecipe(**settings)).modules["student"]
    own, learned = teacher.state_dict(), heir.state_dict()
    for name, weight in student.state_dict().items():
        assert torch.allclose(weight, own[name] + learned[name] - before.state_dict()[name])
    with pytest.raises(ValueError, match="give that as `init`"):
        DistillRecipe(**{**settings, "init": None})


def test_every_picture_of_a_batch_is_spoiled() -> None:
    from tiue_core.train.spoil import spoiled

    images = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, other = (spoiled(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other) and one.shape == images.shape
    assert ((one - images).abs().mean((1, 2, 3)) > 0.1).all() and one.abs().max() <= 1
