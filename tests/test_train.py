"""The trainer: its losses against independent ones, and resume against an uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from tiue_core.errors import TiueError
from tiue_core.train import distill as distilling
from tiue_core.train.diffusion import Noising, guided_ddim
from tiue_core.train.distill import DistillTask, normal_kl
from tiue_core.train.loop import Average, generator_for, rate, train
from tiue_core.train.recipe import DistillRecipe, load_recipe

RECIPES = [*Path("tiue_core").glob("**/recipes/**/*.yaml")]


@pytest.fixture
def recipe(pipe: Any, tmp_path: Path) -> DistillRecipe:
    pipe.save_pretrained(tmp_path / "teacher")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n\na cat\na fox\n")
    return DistillRecipe(
        task="distill",
        out=tmp_path / "run",
        teacher=str(tmp_path / "teacher"),
        prompts=prompts,
        steps=4,
        batch_size=2,
        learning_rate=1e-3,
        lora_rank=4,
        lora_alpha=4,
        ema=0.9,
        checkpoint_every=2,
        sample_every=100,
        log_every=1,
    )


def task_for(recipe: DistillRecipe) -> DistillTask:
    torch.manual_seed(0)
    task = DistillTask(recipe)
    task.prepare(Accelerator(cpu=True))
    return task


def test_kl_is_the_divergence_of_normals() -> None:
    predictions = 0.3 + 1.7 * torch.randn(4, 2, 4, 8, 8, generator=generator(0))
    wanted = 0.0
    for prediction in predictions.flatten(0, 1):
        made = torch.distributions.Normal(prediction.mean(), prediction.std())
        standard = torch.distributions.Normal(0.0, 1.0)
        wanted += torch.distributions.kl_divergence(made, standard)
    assert abs(normal_kl(predictions) - wanted) <= 1e-4 * abs(wanted)


def test_vsd_moves_along_teacher_minus_lora_teacher(
    recipe: DistillRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_for(recipe)
    latents = torch.randn(2, *task.shape, generator=generator(1), requires_grad=True)
    answers = iter([torch.full_like(latents, 3.0), torch.full_like(latents, 1.0)])
    monkeypatch.setattr(distilling, "guided", lambda *_: next(answers))
    task._vsd(latents, torch.zeros(4, 1, 1), generator(2)).backward()
    low, high = recipe.vsd_range
    timesteps = torch.randint(low, high, (2,), generator=generator(2))
    sigma2 = 1 - task.pipeline.scheduler.alphas_cumprod[timesteps]
    wanted = (sigma2 * (3.0 - 1.0))[:, None, None, None] / latents.numel()
    assert latents.grad is not None
    assert (latents.grad - wanted).abs().max() <= 1e-6


def test_fresh_adapters_change_nothing_so_vsd_starts_at_zero(recipe: DistillRecipe) -> None:
    task = task_for(recipe)
    loss = task._vsd(torch.randn(2, *task.shape), torch.randn(4, 16, 32), generator(0))
    assert loss == 0
    for name, parameter in task.teacher.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    loss = task._vsd(torch.randn(2, *task.shape), torch.randn(4, 16, 32), generator(0))
    assert loss > 1e-6


def test_imitation_regresses_onto_diffusers_own_loop(recipe: DistillRecipe) -> None:
    """With the loop's own z_0 as the student's, only the predictions' share is left."""
    task = task_for(recipe)
    noise = torch.randn(2, *task.shape, generator=generator(3))
    embeds = torch.randn(4, 16, 32, generator=generator(4))
    z = guided_ddim(
        task.teacher, task.pipeline.scheduler, noise, embeds, steps=4, guidance=recipe.guidance
    )
    predictions = torch.zeros(4, *noise.shape)
    with_right = task._imitation(predictions, z, noise, embeds)
    with_wrong = task._imitation(predictions, z + 1, noise, embeds)
    assert abs(with_wrong - with_right - 1) <= 1e-3


def test_adam_moves_student_and_adapters_but_not_the_teacher(recipe: DistillRecipe) -> None:
    task = task_for(recipe)
    before = {name: p.clone() for name, p in task.teacher.named_parameters()}
    student = {name: p.clone() for name, p in task.modules["student"].named_parameters()}
    for step in range(2):
        task.update(step, generator_for(recipe, step))
    changed = {n: bool((p != before[n]).any()) for n, p in task.teacher.named_parameters()}
    assert not any(moved for name, moved in changed.items() if "lora" not in name)
    # Not all of them: attention over a single token has no use for its queries.
    assert sum(moved for name, moved in changed.items() if "lora" in name) >= 12
    moved = [bool((p != student[n]).any()) for n, p in task.modules["student"].named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("imitate", [0, 3])
def test_resume_is_bit_exact(recipe: DistillRecipe, tmp_path: Path, imitate: int) -> None:
    whole = recipe.model_copy(update={"out": tmp_path / "whole", "imitate": imitate})
    first = recipe.model_copy(update={"out": tmp_path / "halves", "imitate": imitate, "steps": 2})
    second = first.model_copy(update={"steps": 4})
    train(whole, DistillTask)
    train(first, DistillTask)
    train(second, DistillTask)
    files = sorted((tmp_path / "whole/checkpoints/step-0000004").glob("*.safetensors"))
    assert len(files) == 5  # two networks, one average, two optimizers
    for file in files:
        other = load_file(tmp_path / "halves/checkpoints/step-0000004" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other[name]), f"{file.name}: {name}"


def test_the_result_is_a_student_that_paints(recipe: DistillRecipe) -> None:
    from tiue_core import TiuePipeline

    one = recipe.model_copy(update={"decoders": 1, "timesteps": [999], "steps": 1})
    pipeline = TiuePipeline.from_pretrained(train(one, DistillTask))
    assert pipeline.schedule().timesteps.tolist() == [999]
    assert pipeline("a cat", seed=0).images[0].size == (64, 64)


def test_rate_warms_up_and_decays(recipe: DistillRecipe) -> None:
    slow = recipe.model_copy(update={"steps": 100, "warmup": 10, "decay": 0.5})
    found = [rate(slow, step) for step in range(100)]
    assert found[0] == 0.1 and found[9:50] == [1.0] * 41
    assert found[75] == 0.5 and found[99] == pytest.approx(0.02)


def test_average_follows_the_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = Average({"m": module}, 0.9999)
    wanted = module.weight.item()
    for step in range(5):
        nn.init.constant_(module.weight, float(step))
        average.update({"m": module}, step)
        decay = min((1 + step) / (10 + step), 0.9999)
        wanted = decay * wanted + (1 - decay) * step
    assert average.modules["m"].weight.item() == pytest.approx(wanted, rel=1e-6)


def test_noising_inverts(recipe: DistillRecipe) -> None:
    noising = Noising.from_scheduler(task_for(recipe).pipeline.scheduler)
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([1, 500, 900])
    back = noising.clean(noising.add(clean, noise, timesteps), noise, timesteps)
    assert (back - clean).abs().max() <= 1e-4


@pytest.mark.parametrize("file", RECIPES, ids=str)
def test_shipped_recipes_are_valid(file: Path) -> None:
    assert load_recipe(file).steps > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: [", "not YAML"),
        ("task: paint", "use one of"),
        ("- 1", "use one of"),
        ("task: distill\nout: x\nsteps: 3", "batch_size"),
        ("task: distill\nout: x\nsteps: -1\nbatch_size: 1\nlearning_rate: 1", "steps"),
        ("task: distill\nout: x\nstepz: 1", "stepz|steps"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(TiueError, match=words) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


def test_missing_recipe_prompts_and_foreign_checkpoint(recipe: DistillRecipe) -> None:
    with pytest.raises(TiueError, match="cannot be read"):
        load_recipe(Path("nowhere.yaml"))
    with pytest.raises(TiueError, match="cannot be read"):
        DistillTask(recipe.model_copy(update={"prompts": Path("nowhere.txt")}))
    with pytest.raises(TiueError, match="neither"):
        DistillTask(recipe.model_copy(update={"prompts": None}))
    train(recipe.model_copy(update={"steps": 1}), DistillTask)
    with pytest.raises(TiueError, match="does not fit this recipe"):
        train(recipe.model_copy(update={"lora_rank": 8}), DistillTask)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
