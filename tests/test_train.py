"""The trainer: its losses against independent ones, and resume against an uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from tiue_core.core.forward_process import Noising, guided_ddim
from tiue_core.errors import TiueError
from tiue_core.train import vsd
from tiue_core.train.critic import both_seen, criticism, fool, tell_apart
from tiue_core.train.loop import Average, generator_for, train
from tiue_core.train.optimizers import descend, lr_lambda
from tiue_core.train.recipe import DistillRecipe, load_recipe
from tiue_core.train.tasks.distill import DistillTask
from tiue_core.train.vsd import normal_kl, plain

ROOT = Path(__file__).parents[1]
RECIPES = [*(ROOT / "tiue_core").glob("**/recipes/**/*.yaml")]


@pytest.fixture
def recipe(pipe: Any, tmp_path: Path) -> DistillRecipe:
    pipe.save_pretrained(tmp_path / "teacher")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n\na cat\na fox\n")
    return DistillRecipe(
        task="distill",
        out=tmp_path / "run",
        teacher=str(tmp_path / "teacher"),
        prompts=str(prompts),
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
    monkeypatch.setattr(vsd, "guided", lambda *_: next(answers))
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
    given = (task.accelerator, task.teacher, task.schedule)
    last = (noise, embeds, recipe.guidance)
    with_right = vsd.imitation(*given, (predictions, z), *last)
    with_wrong = vsd.imitation(*given, (predictions, z + 1), *last)
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


PAIRED = {"pairs": 6, "pair_steps": 3, "regression": 0.5, "adversarial": 0.1}


@pytest.mark.parametrize("terms", [{}, {"imitate": 3}, PAIRED], ids=["vsd", "imitate", "paired"])
def test_resume_is_bit_exact(recipe: DistillRecipe, tmp_path: Path, terms: dict[str, Any]) -> None:
    whole = recipe.model_copy(update={"out": tmp_path / "whole", **terms})
    first = recipe.model_copy(update={"out": tmp_path / "halves", "steps": 2, **terms})
    second = first.model_copy(update={"steps": 4})
    train(whole, DistillTask)
    train(first, DistillTask)
    train(second, DistillTask)
    files = sorted((tmp_path / "whole/checkpoints/step-0000004").glob("*.safetensors"))
    # Networks, one average, optimizers.
    assert len(files) == (7 if "adversarial" in terms else 5)
    for file in files:
        other = load_file(tmp_path / "halves/checkpoints/step-0000004" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other[name]), f"{file.name}: {name}"


def test_pairs_are_where_the_teachers_flow_ends(recipe: DistillRecipe) -> None:
    """Against DDIM at so many steps that both solve the same differential equation."""
    task = task_for(recipe.model_copy(update={"pairs": 3, "pair_steps": 100, "guidance": 2.0}))
    pairs = task.shown.pairs
    with torch.no_grad(), plain(task.teacher):
        tokens = torch.cat([task.empty.expand(3, -1), task.tokens[pairs.rows]])
        embeds = task.pipeline.text_encoder(tokens)[0]
        wanted = guided_ddim(
            task.teacher, task.pipeline.scheduler, pairs.noise, embeds, steps=500, guidance=2.0
        )
    assert (pairs.latents - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_a_lost_file_of_pairs_is_made_again(recipe: DistillRecipe) -> None:
    paired = recipe.model_copy(update={"pairs": 130, "pair_steps": 1})
    first = task_for(paired).shown.pairs
    files = sorted((recipe.out / "pairs").iterdir())
    assert [file.name for file in files] == ["00000.safetensors", "00001.safetensors"]
    files[1].unlink()
    again = task_for(paired).shown.pairs
    assert len(again.rows) == 130
    assert torch.equal(first.latents, again.latents) and torch.equal(first.noise, again.noise)


def both_seen_by(task: DistillTask, fake: Any, real: Any, embeds: Any, seed: int) -> Any:
    levels = task.recipe.critic_range
    sides = (fake, embeds), (real, embeds)
    return both_seen(task._seen, task.noising, *sides, generator(seed), levels)


def test_the_critic_learns_and_the_student_follows_it(recipe: DistillRecipe) -> None:
    task = task_for(recipe.model_copy(update=PAIRED))
    real = torch.randn(4, *task.shape, generator=generator(5))
    fake = (real + 1.0).requires_grad_()
    embeds = torch.randn(4, 16, 32, generator=generator(6))

    def judged(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = both_seen_by(task, fake, real, embeds, step)
        return criticism(task.modules["critic"], *seen, embeds, embeds)

    losses = []
    for step in range(60):
        _, told = judged(step)
        losses.append(float(told.detach()))
        descend(task.accelerator, task.optimizers["critic"], told, 1.0)
    assert losses[-1] < 0.8 * losses[0]  # a plain shift is easy to see
    before = {name: p.clone() for name, p in task.modules["critic"].named_parameters()}
    fooled, _ = judged(99)
    fooled.backward()
    assert fake.grad is not None and fake.grad.mean() > 0  # descending takes the shift back
    after = dict(task.modules["critic"].named_parameters())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in after.items())


def test_perceptual_distance_is_of_directions() -> None:
    """2 - 2 cos of the angle at every place; how strong a feature is does not matter."""
    a, b = (torch.randn(2, 5, 3, 3, generator=generator(seed)) for seed in (7, 8))
    apart = 2 - 2 * torch.nn.functional.cosine_similarity(a, b, dim=1)
    assert vsd.perceptual([a, 3 * a], [b, a]) == pytest.approx(float(apart.mean()) / 2, abs=1e-6)


def test_perception_is_the_teachers(recipe: DistillRecipe) -> None:
    """Its gradient takes the student's latents towards the teacher's, and moves no teacher."""
    task = task_for(recipe.model_copy(update={**PAIRED, "perceptual": 1.0, "adversarial": 0.0}))
    real = torch.randn(4, *task.shape, generator=generator(5))
    fake = (real + 0.5 * torch.randn(real.shape, generator=generator(6))).requires_grad_()
    embeds = torch.randn(4, 16, 32, generator=generator(7))
    loss = vsd.perceptual(*both_seen_by(task, fake, real, embeds, 0))
    loss.backward()
    assert fake.grad is not None and (fake.grad * (fake - real)).sum() > 0
    assert all(p.grad is None for p in task.teacher.parameters())
    logs = task.update(0, generator_for(recipe, 0))
    assert float(logs["perceptual"]) > 0


def test_hinge_losses_by_hand() -> None:
    real, fake = [torch.tensor([0.5, 2.0])], [torch.tensor([-3.0, 0.0])]
    assert tell_apart(real, fake) == pytest.approx((0.5 + 0) / 2 + (0 + 1) / 2)
    assert fool(fake) == pytest.approx(1.5)


def test_the_result_is_a_student_that_paints(recipe: DistillRecipe) -> None:
    from tiue_core import TiuePipeline

    one = recipe.model_copy(update={"decoders": 1, "timesteps": [999], "steps": 1})
    pipeline = TiuePipeline.from_pretrained(train(one, DistillTask))
    assert pipeline.schedule().timesteps.tolist() == [999]
    assert pipeline("a cat", seed=0).images[0].size == (64, 64)


def test_rate_warms_up_and_decays(recipe: DistillRecipe) -> None:
    slow = recipe.model_copy(update={"steps": 100, "warmup": 10, "decay": 0.5})
    found = [lr_lambda(slow, step) for step in range(100)]
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


def test_noising_is_the_schedulers(recipe: DistillRecipe) -> None:
    task = task_for(recipe)
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([1, 500, 900])
    wanted = task.pipeline.scheduler.add_noise(clean, noise, timesteps)
    made = Noising.from_scheduler(task.pipeline.scheduler).add(clean, noise, timesteps)
    assert (made - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
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
        DistillTask(recipe.model_copy(update={"prompts": "nowhere.txt"}))
    with pytest.raises(TiueError, match="neither"):
        DistillTask(recipe.model_copy(update={"prompts": None}))
    train(recipe.model_copy(update={"steps": 1}), DistillTask)
    with pytest.raises(TiueError, match="another recipe"):
        train(recipe.model_copy(update={"lora_rank": 8}), DistillTask)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
