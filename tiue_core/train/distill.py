"""The distillation of the paper: a one-pass student from a teacher, by prompts alone.

Variational score distillation (VSD) with three networks that start as the same UNet:

    student        z_0 = S noise + sum_t E_t eps_t, one encoder pass, K decoders      (Eq. 11)
    teacher        what the pictures should look like; frozen
    LoRA teacher   the teacher with adapters that keep learning what the student's look like

The student follows the difference of the two teachers' noise predictions on its own, noised
output; a KL term keeps each of its K predictions near N(0, 1). The adapters can be switched off,
so one UNet in memory serves as both teachers. K = 1 at t = 999 without the KL term is SwiftBrush.

Where compute is scarce, two terms on samples that the teacher painted once (``pairs.py``), prompts
alone still, take the student further in fewer updates: regression onto the teacher's sample of the
same noise, as in DMD (arXiv:2311.18828), and a critic (``critic.py``), as in DMD2 and LADD.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn

from ..errors import TiueError
from ..pipeline import TiuePipeline
from ..schedule import OneWaySchedule
from ..stickers.world import World
from ..unet import SplitUNet
from .critic import Critic, fool, tell_apart
from .diffusion import Noising, guided, tokenize
from .grids import grid
from .loop import adam, descend
from .pairs import teacher_pairs
from .reals import real_images
from .recipe import DistillRecipe, data_seed

WORLD_PROMPTS = 20_000


class DistillTask:
    """One update moves the student (VSD + KL), then the LoRA teacher (denoising)."""

    averaged = ("student",)

    def __init__(self, recipe: DistillRecipe):
        self.recipe = recipe
        self.pipeline = TiuePipeline.from_pretrained(recipe.teacher)
        for component in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.unet):
            component.eval().requires_grad_(False)
        self.prompts = _prompts(recipe)
        self.tokens = tokenize(self.pipeline.tokenizer, self.prompts)
        self.empty = tokenize(self.pipeline.tokenizer, [""])
        self.schedule = OneWaySchedule.from_config(
            self.pipeline.scheduler, steps=recipe.decoders, timesteps=recipe.timesteps
        )

        size = recipe.latent_size or self.pipeline.unet.config.sample_size
        self.shape = (self.pipeline.unet.config.in_channels, size, size)

        student = copy.deepcopy(self.pipeline.unet)
        if recipe.init:
            student = UNet2DConditionModel.from_pretrained(recipe.init, use_safetensors=True)
        student.requires_grad_(True)
        self.teacher = self.pipeline.unet
        self.teacher.add_adapter(
            LoraConfig(
                r=recipe.lora_rank,
                lora_alpha=recipe.lora_alpha,
                target_modules=recipe.lora_targets,
                init_lora_weights="gaussian",
            )
        )
        if recipe.gradient_checkpointing:
            student.enable_gradient_checkpointing()
            self.teacher.enable_gradient_checkpointing()
        self.modules: Mapping[str, nn.Module] = {"student": student, "lora_teacher": self.teacher}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(recipe, student.parameters()),
            "lora_teacher": adam(recipe, _learned(self.teacher), recipe.lora_learning_rate),
        }
        if recipe.adversarial:
            width = self.teacher.config.cross_attention_dim
            nothing = torch.zeros(1, *self.shape), torch.zeros(1), torch.zeros(1, 1, width)
            critic = Critic([f.shape[1] for f in self._seen(*nothing)], width)
            self.modules = {**self.modules, "critic": critic}
            learned = critic.parameters()
            self.optimizers["critic"] = adam(recipe, learned, recipe.critic_learning_rate)

    def prepare(self, accelerator: Accelerator) -> None:
        recipe, self.accelerator = self.recipe, accelerator
        self.pipeline.to(accelerator.device)
        self.student = SplitUNet(self.modules["student"].to(accelerator.device))
        self.noising = Noising.from_scheduler(self.pipeline.scheduler).to(accelerator.device)
        if recipe.adversarial:
            self.modules["critic"].to(accelerator.device)
        if recipe.images or recipe.world_images:
            self.reals = real_images(recipe, self.pipeline, accelerator)
        if recipe.pairs:
            with plain(self.teacher):
                self.pairs = teacher_pairs(
                    recipe.pairs_from or recipe.out / "pairs",
                    self.pipeline,
                    self.tokens,
                    self.empty,
                    self.shape,
                    accelerator,
                    count=recipe.pairs,
                    guidance=recipe.guidance,
                    steps=recipe.pair_steps,
                    seed=data_seed(recipe),
                )

    def update(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        recipe, device = self.recipe, self.accelerator.device
        if recipe.pairs:
            rows, noise, painted = self.pairs.draw(recipe.batch_size, generator)
            noise, painted = noise.to(device), painted.to(device)
        else:
            rows = torch.randint(len(self.prompts), (recipe.batch_size,), generator=generator)
            noise = self._noise(len(rows), generator)
        with torch.no_grad(), self.accelerator.autocast():
            tokens = torch.cat([self.empty.expand(len(rows), -1), self.tokens[rows]]).to(device)
            prompt_embeds = self.pipeline.text_encoder(tokens)[0]
        empty, wanted = prompt_embeds.chunk(2)

        predictions, latents = self.paint(self.student, noise, wanted)
        losses = {"kl": (recipe.kl_weight, normal_kl(predictions))}
        if step >= recipe.imitate:
            losses["vsd"] = (recipe.vsd, self._vsd(latents, prompt_embeds, generator))
        elif not recipe.regression:
            loss = self._imitation(predictions, latents, noise, prompt_embeds)
            losses["imitation"] = (1.0, loss)
        if recipe.regression:
            # Where the teacher could have gone two ways, L1 chooses one; L2 would paint between.
            loss = nn.functional.smooth_l1_loss(latents, painted, beta=0.1)
            losses["regression"] = (recipe.regression, loss)
        if recipe.adversarial:
            real, asked = self._real(painted, wanted, generator)
            fooled, told = self._criticism(latents, real, wanted, generator, asked)
            losses["adversarial"] = (recipe.adversarial, fooled)
        logs = {name: loss.detach() for name, (_, loss) in losses.items()}
        total = torch.stack([weight * loss for weight, loss in losses.values()]).sum()
        logs["student_norm"] = self._descend("student", total)

        if recipe.adversarial:
            logs["critic"] = told.detach()
            logs["critic_norm"] = self._descend("critic", told)
        # Without VSD nobody asks the LoRA teacher; it starts early enough to know the student then.
        wanted_soon = not recipe.regression or step >= recipe.imitate - recipe.lora_lead
        for _ in range(recipe.lora_updates if wanted_soon else 0):
            dropped = torch.rand(len(rows), 1, 1, generator=generator) < recipe.drop_prompt
            context = torch.where(dropped.to(device), empty, wanted)
            denoising = self._denoising(latents.detach(), context, generator)
            logs["lora"] = denoising.detach()
            logs["lora_norm"] = self._descend("lora_teacher", denoising)
        return logs

    def paint(
        self, student: SplitUNet, noise: Tensor, prompt_embeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, C, h, w) -> the K predictions (K, B, C, h, w) and z_0 (B, C, h, w)."""
        timesteps = self.schedule.timesteps
        if not self.recipe.shared_encoder:
            with self.accelerator.autocast():
                predictions, latents = sequential(student, self.schedule, noise, prompt_embeds)
            return predictions, latents
        with self.accelerator.autocast():
            features = student.encode(noise, timesteps[0], prompt_embeds)
            predictions = student.decode(features, timesteps, prompt_embeds)
        predictions = predictions.float()
        return predictions, self.schedule.combine(noise, predictions)

    def _vsd(self, latents: Tensor, prompt_embeds: Tensor, generator: torch.Generator) -> Tensor:
        """0.5 MSE(z_0, detach(z_0 - g)) with g = sigma_t^2 (teacher - LoRA teacher)."""
        low, high = self.recipe.vsd_range
        timesteps = torch.randint(low, high, (len(latents),), generator=generator)
        timesteps = timesteps.to(latents.device)
        noisy = self.noising.add(latents.detach(), self._noise(len(latents), generator), timesteps)
        scale = self.recipe.guidance
        with torch.no_grad(), self.accelerator.autocast():
            with plain(self.teacher):
                wanted = guided(self.teacher, noisy, timesteps, prompt_embeds, scale)
            made = guided(self.teacher, noisy, timesteps, prompt_embeds, scale)
        gradient = torch.nan_to_num((1 - self.noising.alpha(timesteps)) * (wanted - made))
        return 0.5 * (latents - (latents - gradient).detach()).square().mean()

    def _imitation(
        self, predictions: Tensor, latents: Tensor, noise: Tensor, prompt_embeds: Tensor
    ) -> Tensor:
        """Regression onto the teacher's guided DDIM loop over the same K timesteps and noise.

        A quick way from "the encoder has never been shared" to where VSD starts to matter.
        """
        wanted, z = [], noise
        with torch.no_grad(), self.accelerator.autocast(), plain(self.teacher):
            steps = zip(self.schedule.timesteps, self.schedule.coefficients.tolist(), strict=True)
            for timestep, (a, b) in steps:  # Eq. 7 to 10
                timestep = timestep.to(z.device)
                predicted = guided(self.teacher, z, timestep, prompt_embeds, self.recipe.guidance)
                wanted.append(predicted)
                z = a * z + b * predicted
        error = (predictions - torch.stack(wanted)).square().mean()
        return error + (latents - z).square().mean()

    def _real(
        self, painted: Tensor, prompt_embeds: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What the critic is to call real, with its prompts: teacher samples, images or both."""
        recipe = self.recipe
        if not (recipe.images or recipe.world_images):
            return painted, prompt_embeds
        count = max(1, round(recipe.images_share * recipe.batch_size))
        tokens, latents = self.reals.draw(count, generator)
        with torch.no_grad(), self.accelerator.autocast():
            embeds = self.pipeline.text_encoder(tokens.to(prompt_embeds.device))[0]
        latents = latents.to(prompt_embeds.device)
        if count == recipe.batch_size:
            return latents, embeds
        return torch.cat([latents, painted[count:]]), torch.cat([embeds, prompt_embeds[count:]])

    def _criticism(
        self,
        latents: Tensor,
        painted: Tensor,
        prompt_embeds: Tensor,
        generator: torch.Generator,
        painted_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The student's loss and the critic's; both sets noised alike, so details count too.

        ``painted`` is the real side; its prompts are the student's unless ``painted_embeds`` says.
        """
        asked = prompt_embeds if painted_embeds is None else painted_embeds
        low, high = self.recipe.critic_range
        timesteps = torch.randint(low, high, (len(latents),), generator=generator)
        timesteps = timesteps.to(latents.device)
        noise = self._noise(len(latents), generator)
        critic, prompt = self.modules["critic"], prompt_embeds.float().mean(1)
        with self.accelerator.autocast():
            noised = self.noising.add(latents, noise, timesteps)
            fake = self._seen(noised, timesteps, prompt_embeds)
            with torch.no_grad():
                noised = self.noising.add(painted, noise, timesteps)
                real = self._seen(noised, timesteps, asked)
        seen = critic(real, asked.float().mean(1))
        told = tell_apart(seen, critic([f.detach() for f in fake], prompt))
        critic.requires_grad_(False)  # the student's loss must not move it
        fooled = fool(critic(fake, prompt))
        critic.requires_grad_(True)
        return fooled, told

    def _seen(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> list[Tensor]:
        """What the teacher's encoder sees in noised latents: every level's last, and the middle."""
        with plain(self.teacher):
            features = SplitUNet(self.teacher).encode(latents, timesteps, prompt_embeds)
        levels = {skip.shape[-1]: skip for skip in features.skips}  # the last of each size
        return [f.float() for f in (*levels.values(), features.mid)]

    def _denoising(
        self, latents: Tensor, prompt_embeds: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The LoRA teacher's own loss: noise prediction on the student's output, times alpha_t."""
        low, high = self.recipe.lora_range
        timesteps = torch.randint(low, high, (len(latents),), generator=generator)
        timesteps = timesteps.to(latents.device)
        noise = self._noise(len(latents), generator)
        noisy = self.noising.add(latents, noise, timesteps)
        with self.accelerator.autocast():
            predicted = self.teacher(noisy, timesteps, prompt_embeds).sample
        return (self.noising.alpha(timesteps) * (predicted.float() - noise).square()).mean()

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn((count, *self.shape), generator=generator).to(self.accelerator.device)

    def _descend(self, name: str, loss: Tensor) -> Tensor:
        return descend(self.accelerator, self.optimizers[name], loss, self.recipe.grad_clip)

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        prompts = (self.prompts * 32)[:32]
        generator = torch.Generator().manual_seed(self.recipe.seed)
        noise = self._noise(len(prompts), generator)
        tokens = tokenize(self.pipeline.tokenizer, prompts).to(noise.device)
        context = self.pipeline.text_encoder(tokens)[0]
        _, latents = self.paint(SplitUNet(modules["student"]), noise, context)
        vae = self.pipeline.vae
        images = vae.decode(latents / vae.config.scaling_factor).sample
        return grid(images, columns=8)

    def export(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        parts = self.pipeline.components
        timesteps = [int(t) for t in self.schedule.timesteps] if self.recipe.timesteps else None
        TiuePipeline(
            vae=parts["vae"],
            text_encoder=parts["text_encoder"],
            tokenizer=parts["tokenizer"],
            unet=modules["student"].eval(),
            scheduler=parts["scheduler"],
            steps=self.recipe.decoders,
            timesteps=timesteps,
        ).save_pretrained(folder)


def sequential(
    student: SplitUNet, schedule: OneWaySchedule, noise: Tensor, prompt_embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """The loop that TiUE leaves out: K whole passes, each on the latents of the one before.

    Returns the K predictions (K, B, C, h, w) and z_0 (B, C, h, w), as ``paint`` does.
    """
    predictions, z = [], noise
    for timestep, (a, b) in zip(  # Eq. 7 to 10
        schedule.timesteps, schedule.coefficients.tolist(), strict=True
    ):
        features = student.encode(z, timestep, prompt_embeds)
        predictions.append(student.decode(features, timestep[None], prompt_embeds)[0].float())
        z = a * z + b * predictions[-1]
    return torch.stack(predictions), z


def normal_kl(predictions: Tensor) -> Tensor:
    """KL(N(mu, v) || N(0, 1)) = (v + mu^2 - 1 - ln v) / 2 of every prediction, summed.

    mu and v are the mean and unbiased variance over one whole prediction; (K, B, C, h, w) -> ().
    """
    flat = predictions.flatten(2)
    mean, variance = flat.mean(-1), flat.var(-1)
    return 0.5 * (variance + mean.square() - 1 - variance.log()).sum()


@contextmanager
def plain(unet: UNet2DConditionModel):  # type: ignore[no-untyped-def]
    """The UNet without its adapters."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def _learned(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _prompts(recipe: DistillRecipe) -> list[str]:
    """The prompts, shuffled once with the recipe's seed."""
    if recipe.world is not None:
        world = World(**recipe.world.model_dump())
        return [s.caption for s in world.scenes(WORLD_PROMPTS, data_seed(recipe) + 7)]
    if recipe.prompts is None:
        raise TiueError("The recipe names neither `prompts` nor `world`: give a file of prompts.")
    try:
        lines = recipe.prompts.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TiueError(
            f"Prompts {recipe.prompts} cannot be read ({error.strerror}): check the path."
        ) from None
    prompts = sorted({line.strip() for line in lines} - {""})
    if not prompts:
        raise TiueError(f"{recipe.prompts} holds no prompt: write one a line.")
    random.Random(data_seed(recipe)).shuffle(prompts)
    return prompts
