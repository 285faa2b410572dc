"""A system as something to call: like `TiuePipeline`, one picture per prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import latent_side, one_of, seeds_of, texts_of, whole
from ..pipelines.base import OUTPUT_TYPES, TiueOutput, _joined
from ..pipelines.vae import decode
from ..shared.finite import check_picture
from . import recipes
from .system import System


class SystemPipeline:
    """A diffusers pipeline bound to a row of the registry.

    Every picture depends on its prompt, its seed and its size: the first noise and whatever the
    sampler adds later come from the picture's own generator, which is drawn from on the CPU.
    """

    def __init__(self, system: System, pipe: Any) -> None:
        self.system, self.pipe = system, pipe

    unet = property(lambda self: self.pipe.unet)
    vae = property(lambda self: self.pipe.vae)
    text_encoder = property(lambda self: self.pipe.text_encoder)
    scheduler = property(lambda self: self.pipe.scheduler)
    device = property(lambda self: self.pipe.device)
    vae_scale_factor = property(lambda self: self.pipe.vae_scale_factor)

    @property
    def pixels(self) -> int:
        """The side it is at home at: the row's, or its UNet's where that is another model's."""
        own = int(self.unet.config.sample_size) * self.vae_scale_factor
        return self.system.pixels if own >= self.system.pixels else own

    @property
    def facts(self) -> dict[str, Any]:
        """What a picture's metadata says beside the student's words."""
        system = self.system
        return {
            "system": system.name,
            "sampler": system.sampler,
            "guidance": system.guidance,
            "timesteps": list(system.timesteps),
            "decoders": None,
        }

    def schedule(self, steps: int | None = None, decoders: str = "exact") -> SimpleNamespace:
        """The timesteps, as `TiuePipeline.schedule` has them."""
        return SimpleNamespace(timesteps=torch.tensor(self.system.timesteps))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        count: int = 1,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        decoders: str = "exact",
        batch_size: int = 8,
        output_type: str = "pil",
        callback: Callable[[int, int], Any] | None = None,
        **other: Any,
    ) -> TiueOutput:
        """Make ``count`` pictures of every prompt, as `TiuePipeline.__call__` does.

        Raises:
            ValueError: an argument that is not right, or one that is the row's to say (``steps``,
                ``decoders``, ``guidance_scale``, ...).
        """
        one_of("output_type", output_type, OUTPUT_TYPES)
        fixed = [name for name, value in {"steps": steps, **other}.items() if value is not None]
        if fixed or decoders != "exact":
            names = ", ".join(fixed or ["decoders"])
            raise ValueError(f"{self.system.name} says itself what {names} is: leave it out")
        count, batch_size = whole("count", count, 1), whole("batch_size", batch_size, 1)
        factor, sides = self.vae_scale_factor, []
        for name, given in (("height", height), ("width", width)):
            side = self.pixels if given is None else whole(name, given, 1)
            sides.append(latent_side(name, side, factor))
        prompts = [text for text in texts_of("prompt", prompt) for _ in range(count)]
        seeds = seeds_of(seed, len(prompts))
        shape, batches = (self.unet.config.in_channels, *sides), []
        for first in range(0, len(prompts), batch_size):
            some = slice(first, first + batch_size)
            generators = [torch.Generator().manual_seed(one) for one in seeds[some]]
            noise = torch.cat([torch.randn((1, *shape), generator=g) for g in generators])
            noise = noise.to(self.device, self.unet.dtype)
            batches.append(self._paint(prompts[some], noise, generators, output_type))
            if callback is not None:
                callback(min(first + batch_size, len(prompts)), len(prompts))
        return TiueOutput(images=_joined(batches), seeds=seeds)

    def _paint(
        self, prompts: list[str], noise: Tensor, generators: list[torch.Generator], output_type: str
    ) -> Any:
        system, pipe = self.system, self.pipe
        if system.sampler not in ("faster", "flow", "one-step"):
            takes_eta = {"eta": system.eta} if system.eta is not None else {}  # it defaults to 0
            images = pipe(
                prompt=prompts,
                num_inference_steps=system.steps,
                guidance_scale=system.guidance,
                height=noise.shape[-2] * self.vae_scale_factor,
                width=noise.shape[-1] * self.vae_scale_factor,
                latents=noise,
                generator=generators,
                output_type="latent" if output_type == "latent" else "pt",
                **takes_eta,
            ).images
            check_picture(pipe, images)
            return images if output_type == "latent" else self._as(images, output_type)
        guided = system.sampler == "faster"
        embeds, against = pipe.encode_prompt(prompts, self.device, 1, guided, None)
        if guided:
            z = recipes.faster_diffusion(
                pipe, noise, embeds, against, guidance=system.guidance, steps=system.steps
            )
        else:
            paint = recipes.rectified_flow if system.sampler == "flow" else recipes.one_step
            z = paint(pipe, noise, embeds)
        if output_type == "latent":
            check_picture(pipe, z)
            return z
        images = decode(pipe.vae, z)
        check_picture(pipe, z, images)
        return pipe.image_processor.postprocess(images, output_type=output_type)

    def _as(self, images: Tensor, output_type: str) -> Any:
        """Pictures (B, 3, H, W) in [0, 1] as ``output_type``, as diffusers would give them."""
        processor = self.pipe.image_processor
        if output_type == "pt":
            return images
        pixels = processor.pt_to_numpy(images)
        return pixels if output_type == "np" else processor.numpy_to_pil(pixels)
