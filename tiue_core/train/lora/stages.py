"""The two stages as tasks of the training loop: the teacher's LoRA, then the student's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.noise import draw_noise
from ...io.files import read_header
from ...pipelines.text import token_ids
from ...pipelines.vae import decode
from ..draws import integers, normal
from ..grids import grid
from ..loop import Stopped, Task
from ..optimizers import LossError, adam, descend, finite
from ..pairs import Wanted, teacher_pairs
from ..recipe import LoraRecipe
from ..vsd import denoising, distance, noise_like, normal_kl, one_pass_of, plain, score_distillation
from .adapters import adapt, borrowed, lora_parameters
from .kohya import begin_with, kohya_tensors, write
from .parts import Group, Parts

RESULT = "lora.safetensors"
SAMPLES = 8  #: pictures of a sample: half of the new thing, half of what must stay


class Stage(Task):
    """What the stages share; ``unet`` is what learns."""

    def __init__(self, recipe: LoraRecipe, parts: Parts, unet: Any):
        self.recipe, self.parts, self.unet = recipe, parts, unet
        learned = adapt(unet, recipe)
        self.modules: Mapping[str, nn.Module] = {"lora": unet}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"lora": adam(recipe, learned)}

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def _backward(self, name: str, loss: Tensor) -> None:
        self._check(name, loss)
        self.accelerator.backward(loss)

    def _descend(self, optimizer: str, name: str, loss: Tensor) -> Tensor:
        self._check(name, loss)
        optimizers = self.optimizers
        return descend(self.accelerator, optimizers[optimizer], loss, self.recipe.grad_clip)

    @staticmethod
    def _check(name: str, loss: Tensor) -> None:
        if not finite(loss):
            raise LossError(f"the {name} loss is {float(loss.detach())}")

    def _rows(self, total: int, generator: torch.Generator, count: int | None = None) -> Tensor:
        return integers(generator, 0, total, count or self.recipe.batch_size)

    @property
    def _priors(self) -> int:
        """How many of the pictures that must stay are in an update: half as many as new ones."""
        return max(1, self.recipe.batch_size // 2)

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        """In the student's one pass: the new thing above, what must stay as it was below."""
        parts = self.parts
        half = SAMPLES // 2
        rows = [row % len(parts.captions) for row in range(half)]
        embeds = [parts.embeds[rows]]
        if parts.prior is not None:
            embeds.append(
                parts.prior.embeds[[row % len(parts.prior.embeds) for row in range(half)]]
            )
        context = torch.cat(embeds)
        noise = draw_noise(range(len(context)), parts.shape).to(context.device)
        with self._on_student():
            _, latents = one_pass_of(self.accelerator, parts.halves, parts.schedule, noise, context)
        return grid(decode(parts.pipeline.vae, latents).float(), columns=half)

    def _on_student(self) -> Any:
        raise NotImplementedError

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        tensors = kohya_tensors(modules["lora"], self.recipe.alpha)
        write(folder / RESULT, tensors, {})


class TransferStage(Stage):
    """The teacher learns the pictures by ordinary denoising, and stays itself on other prompts."""

    def __init__(self, recipe: LoraRecipe, parts: Parts):
        super().__init__(recipe, parts, parts.teacher)
        if recipe.init:
            read_header(recipe.init)
            begin_with(self.unet, load_file(recipe.init), recipe.alpha)

    def update(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, prior = self.recipe, self.parts.prior
        loss = self._pictures(generator)
        logs = {"loss": loss.detach()}
        if prior is not None:
            self._backward("denoising", loss)
            name, loss = "prior", recipe.prior * self._prior(generator)
            logs["prior"] = loss.detach()
        else:
            name = "denoising"
        logs["norm"] = self._descend("lora", name, loss)
        return logs

    def _pictures(self, generator: torch.Generator) -> Tensor:
        """MSE on the answer to a batch from one bucket; prompts are dropped now and then."""
        parts, recipe = self.parts, self.recipe
        group = self._group(generator)
        rows = self._rows(len(group.latents), generator)
        clean, context = group.latents[rows], group.embeds[rows]
        dropped = torch.rand(len(rows), 1, 1, generator=generator) < recipe.drop_prompt
        context = torch.where(dropped.to(context.device), parts.empty, context)
        noise = normal(generator, tuple(clean.shape)).to(clean.device)
        timesteps = torch.randint(*recipe.levels, (len(rows),), generator=generator)
        timesteps = timesteps.to(clean.device)
        noisy = parts.noising.add(clean, noise, timesteps)
        with self.accelerator.autocast():
            predicted = self.unet(noisy, timesteps, context).sample
        answer = parts.noising.answer(clean, noise, timesteps)
        return (predicted.float() - answer).square().mean()

    def _group(self, generator: torch.Generator) -> Group:
        """A bucket, the fuller the likelier."""
        sizes = torch.tensor([float(len(group.latents)) for group in self.parts.groups])
        chosen = torch.multinomial(sizes, 1, generator=generator)
        return self.parts.groups[int(chosen) if len(sizes) > 1 else 0]

    def _prior(self, generator: torch.Generator) -> Tensor:
        """MSE between the teacher with and without its LoRA, on the student's own pictures."""
        prior, noising = self.parts.prior, self.parts.noising
        assert prior is not None
        rows = self._rows(len(prior.latents), generator, self._priors)
        clean, context = prior.latents[rows], prior.embeds[rows]
        timesteps, noise = noise_like(clean, generator, (0, 1000))
        noisy = noising.add(clean, noise, timesteps)
        with self.accelerator.autocast():
            with torch.no_grad(), plain(self.unet):
                wanted = self.unet(noisy, timesteps, context).sample
            predicted = self.unet(noisy, timesteps, context).sample
        return (predicted.float() - wanted.float()).square().mean()

    def _on_student(self) -> Any:
        return borrowed(self.parts.student, self.unet)


class StudentStage(Stage):
    """The student's LoRA starts as the teacher's and follows the teacher that carries it.

    ``one-pass``: score distillation against it. ``paired``: regression onto its samples, from the
    same noise. Either way the student stays itself on other prompts.
    """

    def __init__(
        self,
        recipe: LoraRecipe,
        parts: Parts,
        folder: Path,
        stop: Callable[[], bool] = lambda: False,
    ):
        """``parts.teacher`` carries what it learned in its very weights."""
        super().__init__(recipe, parts, parts.student)
        self.folder, self.stop = folder, stop
        self.paired = recipe.method == "paired"
        if not self.paired:
            fake = adapt(parts.teacher, recipe)
            self.modules = {**self.modules, "fake": parts.teacher}
            self.optimizers["fake"] = adam(recipe, fake, recipe.fake_learning_rate)

    def start_from(self, learned: Mapping[str, Tensor]) -> StudentStage:
        """Begin where the teacher's LoRA ended."""
        for name, parameter in lora_parameters(self.unet).items():
            parameter.data.copy_(learned[name])
        return self

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        self.split = self.parts.halves
        if self.paired:
            recipe, parts = self.recipe, self.parts
            pipe = parts.pipeline
            self.pairs = teacher_pairs(
                self.folder / "pairs",
                SimpleNamespace(**{**pipe.components, "unet": parts.teacher}, config=pipe.config),
                token_ids(pipe, parts.captions),
                token_ids(pipe, [""]),
                parts.shape,
                accelerator,
                Wanted(
                    recipe.pairs,
                    recipe.guidance,
                    recipe.pair_steps,
                    recipe.seed,
                    chunk=recipe.batch_size,
                ),
                each=self._stop_here,
            )

    def _stop_here(self) -> None:
        if self.stop():
            raise Stopped("stopped while the teacher painted its samples")

    def update(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, parts, prior = self.recipe, self.parts, self.parts.prior
        device = parts.embeds.device
        if self.paired:
            rows, noise, painted = self.pairs.draw(recipe.batch_size, generator)
            noise, painted = noise.to(device), painted.to(device)
        else:
            rows = self._rows(len(parts.captions), generator)
            noise = normal(generator, (len(rows), *parts.shape)).to(device)
        wanted = parts.embeds[rows]
        predictions, latents = self._paint(noise, wanted)
        kl = normal_kl(predictions)
        name = "regression" if self.paired else "score"
        if self.paired:
            follow = distance(latents, painted)
        else:
            follow = score_distillation(
                self.accelerator,
                parts.teacher,
                parts.noising,
                latents,
                torch.cat([parts.empty.expand(len(rows), -1, -1), wanted]),
                generator,
                guidance=recipe.guidance,
                levels=recipe.vsd_range,
            )
        logs = {"loss": follow.detach(), "kl": kl.detach()}
        loss, made = follow + recipe.kl_weight * kl, latents.detach()
        if prior is not None:
            self._backward(name, loss)
            chosen = self._rows(len(prior.latents), generator, self._priors)
            _, latents = self._paint(prior.noise[chosen], prior.embeds[chosen])
            name, loss = "prior", recipe.prior * distance(latents, prior.latents[chosen])
            logs["prior"] = loss.detach()
        logs["norm"] = self._descend("lora", name, loss)
        if not self.paired:
            dropped = torch.rand(len(rows), 1, 1, generator=generator) < recipe.fake_drop_prompt
            context = torch.where(dropped.to(device), parts.empty, wanted)
            loss = denoising(
                self.accelerator,
                parts.teacher,
                parts.noising,
                made,
                context,
                generator,
                levels=(0, 1000),
            )
            logs["fake"] = loss.detach()
            self._descend("fake", "fake", loss)
        return logs

    def _paint(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        return one_pass_of(self.accelerator, self.split, self.parts.schedule, noise, prompt_embeds)

    def _on_student(self) -> Any:
        return nullcontext()
