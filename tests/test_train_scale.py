"""Training at scale: how a batch is shared out, being killed, kinds of prompts, bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers_kill import DISTILL, dying
from safetensors.torch import load_file
from small import small_clip, small_unet

from tiue_core.errors import TiueError
from tiue_core.train.draws import (
    Draws,
    integers,
    normal,
    uniform,
)
from tiue_core.train.loop import LossError, generator_for, train
from tiue_core.train.prompts import load_prompts
from tiue_core.train.recipe import DistillRecipe, load_recipe
from tiue_core.train.tasks.distill import DistillTask

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def settings(pipe: Any, tmp_path: Path) -> dict[str, Any]:
    """A recipe with every term, as it stands in YAML."""
    # Groups wide enough that a norm does not divide by next to nothing, which amplifies rounding.
    torch.manual_seed(1)
    pipe.unet = small_unet(norm_num_groups=4, sample_size=16)
    pipe.save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cat\n\na fox\na bee\n")
    return {
        "task": "distill",
        "out": str(tmp_path / "run"),
        "teacher": str(tmp_path / "teacher"),
        "prompts": str(tmp_path / "prompts.txt"),
        "steps": 4,
        "batch_size": 4,
        "kl_batch": 4,
        "learning_rate": 1.0e-4,
        "lora_learning_rate": 1.0e-4,
        "critic_learning_rate": 1.0e-4,
        "lora_rank": 4,
        "lora_alpha": 4,
        "pairs": 8,
        "pair_steps": 2,
        "pairs_from": str(tmp_path / "pairs"),
        "regression": 0.5,
        "adversarial": 0.1,
        "ema": 0.9,
        "checkpoint_every": 1000,
        "sample_every": 1000,
        "log_every": 1,
    }


def recipe_of(settings: dict[str, Any], **changes: Any) -> DistillRecipe:
    return DistillRecipe.model_validate({**settings, **changes})


def curve(out: Path) -> list[dict[str, float]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "per_second" not in k} for line in lines]


def furthest(ones: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """The greatest difference between two curves, relative to what is greater than 1."""
    assert len(ones) == len(others) and ones[0].keys() == others[0].keys()
    return max(
        abs(value - other[name]) / max(1.0, abs(value))
        for one, other in zip(ones, others, strict=True)
        for name, value in one.items()
    )


# --- how a batch is shared out -------------------------------------------------------------


def test_shares_of_a_draw_are_the_draw() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    for draw in (
        lambda source, count: integers(source, 5, 900, count),
        lambda source, count: normal(source, (count, 2, 3)),
        lambda source, count: uniform(source, (count, 1)),
    ):
        whole = draw(generator(), 6)
        parts = [draw(Draws(generator(), share, 3), 2) for share in range(3)]
        assert torch.equal(torch.cat(parts), whole)


def test_accumulated_gradients_are_the_whole_batchs(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = recipe_of(settings, out=tmp_path / "whole")
    parts = recipe_of(settings, out=tmp_path / "parts", batch_size=2, accumulate=2)
    train(whole, DistillTask)
    train(parts, DistillTask)
    assert furthest(curve(whole.out), curve(parts.out)) <= 1e-4
    other = recipe_of(settings, out=tmp_path / "other", batch_size=2)  # half of the batch is not it
    train(other, DistillTask)
    assert furthest(curve(whole.out), curve(other.out)) > 1e-3


def launched(launcher: str, file: Path, kind: str = "MULTI_GPU") -> Any:
    """``tiue distill file`` in two processes that talk by gloo."""
    command = [sys.executable, "-m"]
    if launcher == "torchrun":
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    else:  # as `accelerate config` writes it; on a CPU it would want MPI for MULTI_CPU
        config = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": kind,
            "num_machines": 1,
            "num_processes": 2,
            "machine_rank": 0,
            "mixed_precision": "no",
            "main_process_port": 0,
            "use_cpu": True,
        }
        settings = file.with_name("accelerate.yaml")
        settings.write_text(yaml.safe_dump(config))
        command += ["accelerate.commands.launch", "--config_file", str(settings)]
    command += ["-m", "tiue_core", "distill", str(file)]
    cpu = {**ONE_THREAD, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=cpu, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "steps"), [("torchrun", 50), ("accelerate", 10)])
def test_two_processes_are_one(
    settings: dict[str, Any], tmp_path: Path, launcher: str, steps: int
) -> None:
    """Same global batch: the losses of all updates agree to 1e-4 (gloo)."""
    changes = {"steps": steps, "imitate": 5, "lora_lead": 5}
    one = recipe_of(settings, out=tmp_path / "one", **changes)
    two = {**settings, **changes, "out": str(tmp_path / "two"), "batch_size": 2}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(two))
    made = launched(launcher, file)
    assert made.returncode == 0, made.stderr[-2000:]
    assert "on 2 processes" in made.stdout + made.stderr
    train(one, DistillTask)
    difference = furthest(curve(one.out), curve(Path(two["out"])))
    print(f"greatest difference of {steps} updates' losses: {difference:.2e}")
    assert difference <= 1e-4


@pytest.mark.slow
def test_sharding_is_refused_in_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    made = launched("accelerate", file, "FSDP")
    assert made.returncode != 0 and "accelerate is set to FSDP" in made.stderr
    assert not Path(settings["out"]).exists()


# --- killed and resumed --------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_and_resumed_is_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"steps": 40, "checkpoint_every": 1, "imitate": 5}
    whole = recipe_of(settings, out=tmp_path / "whole", **changes)
    train(whole, DistillTask)
    file, killed = tmp_path / "killed.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump({**settings, "out": str(killed), **changes}))
    command = [sys.executable, "-m", "tiue_core", "distill", str(file)]
    kills, chance = 0, random.Random()
    for _ in range(20):
        with subprocess.Popen(
            command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            start = len(list(killed.glob("checkpoints/step-*"))) and latest(killed)
            while run.poll() is None and latest(killed) <= start:
                time.sleep(0.01)
            if kills < 3 and run.poll() is None:
                time.sleep(chance.uniform(0, 2))
                run.send_signal(signal.SIGKILL)
                kills += 1
            elif run.wait() == 0:
                break
    assert (killed / "result" / "model_index.json").is_file() and kills
    files = sorted((whole.out / "checkpoints" / "step-0000040").glob("*.safetensors"))
    assert len(files) == 7
    furthest_apart = 0.0
    for each in files:
        other = load_file(killed / "checkpoints" / "step-0000040" / each.name)
        for name, tensor in load_file(each).items():
            apart = (tensor.double() - other[name].double()).abs().max()
            furthest_apart = max(furthest_apart, float(apart))
    print(f"killed {kills} times; greatest difference of the weights: {furthest_apart}")
    assert furthest_apart == 0.0


@pytest.mark.slow
def test_killed_ten_times_while_a_checkpoint_is_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The moment is the one between two files of a checkpoint: half of it is there."""
    changes = {"steps": 12, "checkpoint_every": 1, "imitate": 5}
    whole = recipe_of(settings, out=tmp_path / "whole", **changes)
    train(whole, DistillTask)
    file, killed = tmp_path / "killed.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump({**settings, "out": str(killed), **changes}))
    for cut in range(1, 11):
        made = dying(DISTILL, "distill", str(file), where=f"step-{cut:07d}", files=cut % 6 + 1)
        assert made.returncode == -signal.SIGKILL, made.stderr[-2000:]
        assert latest(killed) == cut - 1
    command = [sys.executable, "-m", "tiue_core", "distill", str(file)]
    subprocess.run(command, env=ONE_THREAD, check=True, capture_output=True)
    files = sorted((whole.out / "checkpoints" / "step-0000012").glob("*.safetensors"))
    assert len(files) == 7
    for each in files:
        other = load_file(killed / "checkpoints" / "step-0000012" / each.name)
        one = load_file(each)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), each.name


def latest(out: Path) -> int:
    found = sorted(out.glob("checkpoints/step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def test_as_many_checkpoints_stay_as_asked(settings: dict[str, Any]) -> None:
    recipe = recipe_of(settings, checkpoint_every=1, keep=2)
    train(recipe, DistillTask)
    names = sorted(folder.name for folder in (recipe.out / "checkpoints").iterdir())
    assert names == ["step-0000003", "step-0000004"]


def test_eight_bit_adam_is_resumed_exactly(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = {"optimizer": "adamw8bit", "keep": 2, "checkpoint_every": 2}
    train(recipe_of(settings, out=tmp_path / "whole", **base), DistillTask)
    train(recipe_of(settings, out=tmp_path / "halves", steps=2, **base), DistillTask)
    train(recipe_of(settings, out=tmp_path / "halves", **base), DistillTask)
    state = load_file(tmp_path / "whole/checkpoints/step-0000004/student.optimizer.safetensors")
    assert any(tensor.dtype == torch.uint8 for tensor in state.values())
    for file in (tmp_path / "whole/checkpoints/step-0000004").glob("*.safetensors"):
        other = load_file(tmp_path / "halves/checkpoints/step-0000004" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other[name]), f"{file.name}: {name}"


def test_fp16s_scaler_is_resumed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the scale doubles after every third update that did not overflow."""
    used: list[Any] = []

    def scaled(recipe: Any) -> Accelerator:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=9)
        used.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr("tiue_core.train.loop.accelerator_for", scaled)
    base = {"checkpoint_every": 2, "imitate": 0, "steps": 5, "ema": 0}
    train(recipe_of(settings, **base, out=tmp_path / "whole"), DistillTask)
    halves = {**base, "out": tmp_path / "halves"}
    train(recipe_of(settings, **{**halves, "steps": 2}), DistillTask)
    train(recipe_of(settings, **halves), DistillTask)
    # Three optimizers step in an update, and each counts.
    assert used[0].get_scale() == 2048.0 and used[0].state_dict() == used[2].state_dict()
    assert used[1].state_dict() != used[0].state_dict()
    for file in (tmp_path / "whole/checkpoints/step-0000005").glob("*.safetensors"):
        other = load_file(tmp_path / "halves/checkpoints/step-0000005" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other[name]), f"{file.name}: {name}"


# --- what it learns from -------------------------------------------------------------------


def journey(*captions: dict[str, str]) -> str:
    return "".join(json.dumps({"img_path": "x", "Task2": caption}) + "\n" for caption in captions)


def test_prompts_are_read_alike_from_every_format(settings: dict[str, Any], tmp_path: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    wanted = load_prompts(recipe_of(settings))
    assert sorted(wanted) == ["a bee", "a cat", "a dog", "a fox"]  # once each, without the empty
    again = ["a cat", "a dog", "", "a cat", "a fox ", "a bee"]
    keys = ("Caption", "Caption:", "caption")
    files = {
        "anno.jsonl": journey(*({keys[i % 3]: text} for i, text in enumerate(again))),
        "rows.jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in again),
        "rows.csv": "number,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(again)),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    pq.write_table(pyarrow.table({"caption": again}), tmp_path / "rows.parquet")
    for name in (*files, "rows.parquet"):
        assert load_prompts(recipe_of(settings, prompts=str(tmp_path / name))) == wanted, name
    other = load_prompts(recipe_of(settings, data_seed=5))
    assert other != wanted and sorted(other) == sorted(wanted)


def test_prompts_of_a_data_set(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def stream(name: str, **options: Any) -> Any:
        asked.append((name, options))
        rows = [{"Prompt": text} for text in ("a cat", "a dog", "a bee", "a fox")]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", stream)
    found = load_prompts(recipe_of(settings, prompts="hub:somebody/prompts:test"))
    assert found == load_prompts(recipe_of(settings))
    assert asked == [("somebody/prompts", {"split": "test", "streaming": True})]


def test_kept_embeddings_are_the_text_encoders(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "embeds"
    fresh, kept = (
        DistillTask(recipe_of(settings, **changes)) for changes in ({}, {"embeddings": folder})
    )
    for task in (fresh, kept):
        task.prepare(Accelerator(cpu=True))
    rows = torch.tensor([2, 0, 3])
    for one, other in zip(fresh.embeds(rows), kept.embeds(rows), strict=True):
        assert (one - other).abs().max() <= 2e-3 * one.abs().max()  # half precision on disk
    kept.pipeline.text_encoder = None  # read, not made again
    assert torch.equal(kept.embeds(rows)[1], kept.embeds(rows)[1])
    other = recipe_of(settings, data_seed=9, embeddings=folder)  # other order, other rows
    with pytest.raises(TiueError, match="other prompts"):
        DistillTask(other).prepare(Accelerator(cpu=True))


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rat": 1.0}, "learning_rat: there is no such key, did you mean learning_rate"),
        ({"batch_size": "many"}, "batch_size: .*integer"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"vsd_range": [500, 20]}, "vsd_range is"),
        ({"decoders": 2, "timesteps": [999]}, "decoders is 2 but"),
        ({"pairs": 0}, "set `pairs`"),
        ({"clip": 0.1}, "set `clip_model`"),
        ({"adversarial": 0, "world_images": 5}, "set `adversarial`"),
        ({"validate_every": 5}, "validation needs"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}))
    with pytest.raises(TiueError, match=words) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.txt", "\n  \n", "holds no prompt"),
        ("one.txt", "a cat\na cat\n", "one prompt only"),
        ("bad.jsonl", '{"prompt": "a cat"}\n{"prompt"\n', "line 2 is not JSON"),
        ("keys.jsonl", '{"words": "a cat"}\n', "prompt_column"),
        ("bad.parquet", "not parquet", "cannot be read"),
        ("keys.csv", "a,b\n1,2\n", "has the columns a, b"),
        ("binary.txt", b"\xff\xfe\x00\x81", "UTF-8"),
    ],
)
def test_prompts_that_cannot_be_are_one_line(
    settings: dict[str, Any], tmp_path: Path, name: str, text: str | bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TiueError, match=words) as caught:
        load_prompts(recipe_of(settings, prompts=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_not_there(settings: dict[str, Any]) -> None:
    recipe = recipe_of(settings, teacher="./nowhere/teacher")
    with pytest.raises(TiueError, match="does not exist") as caught:
        train(recipe, DistillTask)
    assert "\n" not in str(caught.value)
    assert not (recipe.out / "checkpoints").exists()


def test_another_recipes_checkpoint_is_left_alone(settings: dict[str, Any]) -> None:
    recipe = recipe_of(settings, steps=1)
    train(recipe, DistillTask)
    before = {file: file.read_bytes() for file in recipe.out.rglob("*") if file.is_file()}
    with pytest.raises(TiueError, match="another recipe") as caught:
        train(recipe.model_copy(update={"learning_rate": 0.5, "steps": 3}), DistillTask)
    assert "\n" not in str(caught.value)
    after = {file: file.read_bytes() for file in recipe.out.rglob("*") if file in before}
    assert after == before


def test_a_loss_that_is_no_number_moves_nothing(settings: dict[str, Any]) -> None:
    recipe = recipe_of(settings)
    train(recipe_of(settings, steps=2), DistillTask)
    before = {f: f.read_bytes() for f in (recipe.out / "checkpoints").rglob("*.safetensors")}

    class Breaking(DistillTask):
        def _losses(self, step: int, draws: Draws) -> Any:
            losses, told, kept = super()._losses(step, draws)
            if step == 3:
                losses["kl"] = (1.0, losses["kl"][1] * float("nan"))
            return losses, told, kept

    with pytest.raises(LossError, match="At update 4 of 4 the loss is nan") as caught:
        train(recipe, Breaking)
    assert "\n" not in str(caught.value)
    after = {f: f.read_bytes() for f in (recipe.out / "checkpoints").rglob("*.safetensors")}
    assert after == before and not list(recipe.out.glob("checkpoints/step-0000004"))
    task = Breaking(recipe)
    task.prepare(Accelerator(cpu=True))
    weights = {name: p.clone() for name, p in task.modules["student"].named_parameters()}
    with pytest.raises(LossError):
        task.update(3, generator_for(recipe, 3))
    assert all(torch.equal(p, weights[n]) for n, p in task.modules["student"].named_parameters())


# --- foreseen and measured -----------------------------------------------------------------


def test_the_plan_counts_what_an_update_holds(settings: dict[str, Any]) -> None:
    """Resting bytes by hand: student, average, its Adam; teacher; adapters and critic with Adam."""
    from tiue_core.train.plan import plan

    task = DistillTask(recipe_of(settings))
    found = plan(task, Accelerator(cpu=True))
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in task.modules.items()}
    assert found.student == sizes["student"] and found.critic == sizes["critic"]
    adapters, student = found.adapters, found.student
    teacher = sizes["lora_teacher"] - adapters
    wanted = 4 * (teacher + 4 * student + 3 * adapters + 3 * found.critic)
    assert abs(found.resting - wanted) <= 0.03 * wanted
    twice = plan(DistillTask(recipe_of(settings, batch_size=8)), Accelerator(cpu=True))
    assert twice.flops == pytest.approx(2 * found.flops, rel=0.01)
    active, more = found.peak - found.resting, twice.peak - twice.resting
    assert more > active and twice.resting == pytest.approx(found.resting, rel=0.03)


def test_the_result_is_a_student_with_a_card(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(settings, steps=1, decoders=2, validate_every=0)
    train(recipe, DistillTask)
    result = recipe.out / "result"
    card = (result / "README.md").read_text()
    assert "t = 501, 1" in card and "decoders: 2" in card and "out:" not in card
    command = [sys.executable, "-m", "tiue_core", "generate", "a cat", "--student", str(result)]
    made = subprocess.run([*command, "--out", str(tmp_path / "pictures")], env=ONE_THREAD)
    assert made.returncode == 0 and len(list((tmp_path / "pictures").glob("*.png"))) == 1


def test_the_clip_term_is_a_margin_on_the_cosine(settings: dict[str, Any], tmp_path: Path) -> None:
    """Against transformers' own preprocessing of the same pictures."""
    from tiue_core.train.clip_term import DEVIATION, MEAN

    folder = tmp_path / "clip"
    tokenizer = small_clip(folder)
    recipe = recipe_of(settings, clip=0.1, clip_model=str(folder), clip_margin=0.9, steps=2)
    task = DistillTask(recipe)
    task.prepare(Accelerator(cpu=True))
    assert task.clip is not None
    latents = torch.randn(2, *task.shape, generator=torch.Generator().manual_seed(1))
    latents.requires_grad_()
    found = task.clip.cosines(latents, ["a cat", "a dog"])
    with torch.no_grad():
        vae, clip = task.pipeline.vae, task.clip.clip
        pixels = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
        pixels = torch.nn.functional.interpolate(
            pixels.clamp(0, 1), (32, 32), mode="bicubic", antialias=True
        )
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        words = tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
        scores = clip(pixel_values=pixels, **words).logits_per_image / clip.logit_scale.exp()
    assert (found.detach() - scores.diagonal()).abs().max() <= 1e-5
    loss = task.clip(latents, ["a cat", "a dog"])
    assert float(loss.detach()) == pytest.approx(
        max(0.0, 0.9 - float(scores.diagonal().mean())), abs=1e-5
    )
    loss.backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert [task.clip.weight(step) for step in (0, 1, 2)] == [0.1, 0.05, 0.0]
    assert "clip" in task.update(0, generator_for(recipe, 0))
