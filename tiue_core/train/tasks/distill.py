"""The distillation of the paper: a one-pass student from a teacher, by prompts alone.

Variational score distillation (VSD) with three networks that start as the same UNet:

    student        z_0 = S noise + sum_t E_t eps_t, one encoder pass, K decoders      (Eq. 11)
    teacher        what the pictures should look like; frozen
    LoRA teacher   the teacher with adapters that keep learning what the student's look like

The student follows the difference of the two teachers' noise predictions on its own, noised
output; a KL term keeps each of its K predictions near N(0, 1). The adapters can be switched off,
so one UNet in memory serves as both teachers. K = 1 at t = 999 without the KL term is SwiftBrush.

Where compute is scarce, two terms on samples that the teacher painted once (``pairs.py``), prompts
alone still, take it further in fewer updates: regression onto the sample of the same noise, as in
DMD (arXiv:2311.18828), and a critic (``critic.py``), as in DMD2 and LADD.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn

from ...core.forward_process import Noising, sequential
from ...core.packed import extra_rows, split, take_packed
from ...core.schedule import OneWaySchedule
from ...core.unet import SplitUNet
from ...pipelines.base import TiuePipeline
from ...pipelines.text import token_ids
from ...pipelines.vae import decode
from ...students.models import load_model
from .. import vsd
from ..attention import written_out
from ..blend import inherit
from ..card import card
from ..clip_term import ClipTerm
from ..critic import Critic, both_seen, criticism
from ..draws import Draws, Source, integers, normal, uniform
from ..embeds import Embeds
from ..grids import grid
from ..loop import Task
from ..low_rank import give_adapters, write_adapters
from ..optimizers import adam, backward, optimizer, optimizer_step, trainable
from ..prompts import PromptTokens, load_prompts
from ..real_images import with_images
from ..recipe import DistillRecipe
from ..shown import shown


class DistillTask(Task):
    """One update moves the student (VSD + KL), then the LoRA teacher (denoising)."""

    averaged = ("student",)
    shared_draws = True  #: every process draws for all of them and takes its share (``draws.py``)

    def __init__(self, recipe: DistillRecipe):
        self.recipe = recipe
        self._load()
        size = recipe.latent_size or self.pipeline.unet.config.sample_size
        self.shape = (self.pipeline.unet.config.in_channels, size, size)

        take_packed(self.pipeline.unet, self.pipeline.vae_scale_factor)
        student = self._copy(self.pipeline.unet)
        if recipe.init:
            student = load_model(UNet2DConditionModel, recipe.init)
        if recipe.init_teacher:
            heir, student = student, self._copy(self.pipeline.unet)
            inherit(student, heir, load_model(UNet2DConditionModel, recipe.init_teacher))
        if recipe.weights == "bfloat16":
            student.to(torch.bfloat16)
            self.pipeline.unet.to(torch.bfloat16)
        student.requires_grad_(True)
        if recipe.low_rank:
            student = self._low_rank(student)
        self.teacher = self.pipeline.unet
        self.teacher.add_adapter(
            LoraConfig(
                r=recipe.lora_rank,
                lora_alpha=recipe.lora_alpha,
                target_modules=recipe.lora_targets,
                init_lora_weights="gaussian",
            )
        )
        for unet in (student, self.teacher) if recipe.gradient_checkpointing else ():
            unet.enable_gradient_checkpointing()
        self.modules: Mapping[str, nn.Module] = {"student": student, "lora_teacher": self.teacher}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": optimizer(recipe, [student]),
            "lora_teacher": adam(recipe, trainable([self.teacher]), recipe.lora_learning_rate),
        }
        judged = recipe.validate_every and recipe.world is None  # by CLIP
        self.clip = ClipTerm(recipe, self.pipeline) if recipe.clip or judged else None
        if recipe.adversarial:
            width = self.teacher.config.cross_attention_dim
            prompt = torch.zeros(1, 1 + extra_rows(self.teacher), width)
            nothing = torch.zeros(1, *self.shape), torch.zeros(1), prompt
            critic = Critic([f.shape[1] for f in self._seen(*nothing)], width)
            self.modules = {**self.modules, "critic": critic}
            learned = critic.parameters()
            self.optimizers["critic"] = adam(recipe, learned, recipe.critic_learning_rate)

    def _load(self) -> None:
        """The teacher, the prompts and the schedule."""
        recipe = self.recipe
        self.pipeline = TiuePipeline.from_pretrained(recipe.teacher)
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        self.prompts = load_prompts(recipe)
        self.tokens = PromptTokens(self.pipeline, self.prompts)
        self.empty = token_ids(self.pipeline, [""])
        self.schedule = OneWaySchedule.from_config(
            self.pipeline.scheduler, steps=recipe.decoders, timesteps=recipe.timesteps
        )

    def split(self, unet: nn.Module) -> SplitUNet:
        return split(unet, self.pipeline.vae_scale_factor)

    def _copy(self, unet: UNet2DConditionModel) -> UNet2DConditionModel:
        """What the student starts from."""
        return copy.deepcopy(unet)

    def _low_rank(self, wanted: UNet2DConditionModel) -> UNet2DConditionModel:
        """The teacher with adapters that bring it near ``wanted``; they alone learn."""
        student = copy.deepcopy(self.pipeline.unet).requires_grad_(False)
        give_adapters(student, wanted, self.recipe.low_rank)
        return student

    def prepare(self, accelerator: Accelerator) -> None:
        recipe, self.accelerator = self.recipe, accelerator
        self.pipeline.to(accelerator.device)
        if accelerator.device.type == "cpu":
            written_out(self.teacher)
            written_out(self.modules["student"])
        self.student = self.split(self.modules["student"].to(accelerator.device))
        self.noising = Noising.from_scheduler(self.pipeline.scheduler).to(accelerator.device)
        self.embeds = Embeds(self.pipeline, self.tokens, accelerator, recipe.embeddings)
        if self.clip is not None:
            self.clip.prepare(accelerator)
        if recipe.adversarial:
            self.modules["critic"].to(accelerator.device)
        given = (self.tokens, self.empty, self.shape, accelerator)
        self.shown = shown(recipe, self.pipeline, *given)

    def update(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, parts = self.recipe, self.recipe.accumulate
        first, shares = (
            self.accelerator.process_index * parts,
            self.accelerator.num_processes * parts,
        )
        before = generator.get_state()
        logs: list[dict[str, Tensor]] = []
        told, made = [], []
        for part in range(parts):
            generator.set_state(before)  # every part takes its share of the same draws
            draws = Draws(generator, first + part, shares)
            losses, criticism, pictures = self._losses(step, draws)
            logs.append({name: loss.detach() for name, (_, loss) in losses.items()})
            total = torch.stack([weight * loss for weight, loss in losses.values()]).sum()
            backward(self.accelerator, total / parts)
            made.append(pictures)
            told += [criticism] if criticism is not None else []
        found = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
        found["student_norm"] = self._settle("student")

        if told:
            for loss in told:
                backward(self.accelerator, loss / parts)
            found["critic"] = torch.stack(told).detach().mean()
            found["critic_norm"] = self._settle("critic")
        # Without VSD nobody asks the LoRA teacher; it starts early enough to know the student then.
        wanted_soon = not recipe.regression or step >= recipe.imitate - recipe.lora_lead
        for _ in range(recipe.lora_updates if wanted_soon else 0):
            before, errors = generator.get_state(), []
            for part, (latents, empty, wanted) in enumerate(made):
                generator.set_state(before)
                draws = Draws(generator, first + part, shares)
                dropped = uniform(draws, (len(latents), 1, 1)) < recipe.drop_prompt
                context = torch.where(dropped.to(latents.device), empty, wanted)
                given = (self.noising, latents, context, draws)
                levels = recipe.lora_range
                error = vsd.denoising(self.accelerator, self.teacher, *given, levels=levels)
                backward(self.accelerator, error / parts)
                errors.append(error.detach())
            found["lora"] = torch.stack(errors).mean()
            found["lora_norm"] = self._settle("lora_teacher")
        return found

    def _losses(
        self, step: int, draws: Draws
    ) -> tuple[dict[str, tuple[float, Tensor]], Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """The student's weighted losses, the critic's, and (z_0, empty, prompts) to learn from."""
        recipe, device = self.recipe, self.accelerator.device
        if self.shown.pairs is not None:
            rows, noise, painted = self.shown.pairs.draw(recipe.batch_size, draws)
            noise, painted = noise.to(device), painted.to(device)
        else:
            rows = integers(draws, 0, len(self.prompts), recipe.batch_size)
            noise = self._noise(len(rows), draws)
        empty, wanted = self.embeds(rows)
        prompt_embeds = torch.cat([empty, wanted])

        predictions, latents = self.paint(self.student, noise, wanted)
        summed = (recipe.kl_batch or len(rows)) / len(rows)
        losses = {"kl": (recipe.kl_weight, summed * vsd.normal_kl(predictions))}
        if step >= recipe.imitate:
            losses["vsd"] = (recipe.vsd, self._vsd(latents, prompt_embeds, draws))
        elif not recipe.regression:
            passed, context = (predictions, latents), (noise, prompt_embeds, recipe.guidance)
            loss = vsd.imitation(self.accelerator, self.teacher, self.schedule, passed, *context)
            losses["imitation"] = (1.0, loss)
        if recipe.regression:
            losses["regression"] = (recipe.regression, vsd.distance(latents, painted))
        told = None
        if recipe.adversarial or recipe.perceptual:
            real = (painted, wanted)
            if self.shown.images is not None:
                share, of = recipe.images_share, self.embeds.of
                real = with_images(self.shown.images, share, painted, wanted, of, draws)
            levels = recipe.critic_range
            with self.accelerator.autocast():
                fake = (latents, wanted)
                seen = both_seen(self._seen, self.noising, fake, real, draws, levels)
            if recipe.perceptual:
                losses["perceptual"] = (recipe.perceptual, vsd.perceptual(*seen))
        if recipe.adversarial:
            fooled, told = criticism(self.modules["critic"], *seen, wanted, real[1])
            losses["adversarial"] = (recipe.adversarial, fooled)
        if recipe.clip and self.clip is not None:
            prompts = [self.prompts[row] for row in rows.tolist()]
            losses["clip"] = (self.clip.weight(step), self.clip(latents, prompts))
        return losses, told, (latents.detach(), empty, wanted)

    def paint(
        self, student: SplitUNet, noise: Tensor, prompt_embeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, C, h, w) -> the K predictions (K, B, C, h, w) and z_0 (B, C, h, w)."""
        if not self.recipe.shared_encoder:
            with self.accelerator.autocast():
                return sequential(student, self.schedule, noise, prompt_embeds)
        return vsd.one_pass_of(self.accelerator, student, self.schedule, noise, prompt_embeds)

    def _vsd(self, latents: Tensor, prompt_embeds: Tensor, generator: Source) -> Tensor:
        given = (self.accelerator, self.teacher, self.noising, latents, prompt_embeds, generator)
        guidance, levels = self.recipe.guidance, self.recipe.vsd_range
        return vsd.score_distillation(*given, guidance=guidance, levels=levels)

    def _seen(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> list[Tensor]:
        """What the teacher's encoder sees in noised latents: every level's last, and the middle."""
        with vsd.plain(self.teacher):
            features = self.split(self.teacher).encode(latents, timesteps, prompt_embeds)
        levels = {skip.shape[-1]: skip for skip in features.skips}  # the last of each size
        return [f.float() for f in (*levels.values(), features.mid)]

    def _noise(self, count: int, generator: Source) -> Tensor:
        return normal(generator, (count, *self.shape)).to(self.accelerator.device)

    def _settle(self, name: str) -> Tensor:
        return optimizer_step(self.accelerator, self.optimizers[name], self.recipe.grad_clip)

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        prompts = (self.prompts * 32)[:32]
        generator = torch.Generator().manual_seed(self.recipe.seed)
        noise = self._noise(len(prompts), generator)
        tokens = token_ids(self.pipeline, prompts)
        context = self.embeds.of(tokens).to(noise.device)
        _, latents = self.paint(self.split(modules["student"]), noise, context)
        return grid(decode(self.pipeline.vae, latents), columns=8)

    @torch.no_grad()
    def validate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """The pictures of prompts that are not learned from, measured."""
        from ..validate import measure

        return measure(self, modules["student"])

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        parts, unet = self.pipeline.components, modules["student"].eval()
        if self.recipe.low_rank:
            unet = write_adapters(unet, folder)
        timesteps = [int(t) for t in self.schedule.timesteps] if self.recipe.timesteps else None
        own = {"steps": self.recipe.decoders, "timesteps": timesteps}
        if "force_zeros_for_empty_prompt" in self.pipeline.config:
            own["force_zeros_for_empty_prompt"] = self.pipeline.config.force_zeros_for_empty_prompt
        parts = {**parts, "unet": unet}
        type(self.pipeline)(**parts, **own).save_pretrained(folder)
        (folder / "README.md").write_text(card(self.recipe, self.schedule), encoding="utf-8")
