"""Teacher samples made once, from prompts alone: (noise, prompt) -> the latents a teacher paints.

Solving the teacher's probability flow to its end is dear, so it is done once for a few thousand
noises and every update reads from them. DPM-Solver++ (arXiv:2211.01095) takes a dozen steps where
DDIM wants fifty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file
from torch import Tensor

from ..core.forward_process import guided
from ..io.files import safetensors_of, write_atomically
from ..pipelines.text import embed
from .draws import Source, integers

logger = logging.getLogger("tiue.train")

CHUNK = 128  #: samples a file; the unit of work that an interruption can cost


@dataclass(frozen=True)
class Pairs:
    """``rows`` (N,) of the prompts, ``noise`` and ``latents`` (N, C, h, w), on the CPU."""

    rows: Tensor
    noise: Tensor
    latents: Tensor

    def draw(self, count: int, source: Source) -> tuple[Tensor, Tensor, Tensor]:
        chosen = integers(source, 0, len(self.rows), count)
        return self.rows[chosen], self.noise[chosen], self.latents[chosen]


@dataclass(frozen=True)
class Wanted:
    """Which samples. A chunk of them depends on its number and ``seed`` alone."""

    count: int
    guidance: float
    steps: int  # of the solver
    seed: int
    chunk: int = CHUNK  # samples a file


def teacher_pairs(
    folder: Path,
    pipeline: Any,
    tokens: Any,
    empty: Tensor,
    shape: tuple[int, int, int],
    accelerator: Accelerator,
    wanted: Wanted,
    each: Callable[[], None] = lambda: None,
) -> Pairs:
    """Make what ``folder`` lacks of the samples, a file a chunk, and read them all.

    Args:
        tokens: (N, L), the prompts; ``empty`` (1, L), the empty one.
        each: called before a chunk is made; may raise. Processes share the chunks.
    """
    count, chunk, seed = wanted.count, wanted.chunk, wanted.seed
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // chunk))
    for number in chunks[accelerator.process_index :: accelerator.num_processes]:
        if not chunk_file(folder, number).is_file():
            each()
            rows, noise = _start(number, chunk, seed, len(tokens), shape)
            latents = _solve(pipeline, accelerator, tokens[rows], empty, noise, wanted)
            made = safetensors_of({"latents": latents.half()}, {})
            write_atomically(chunk_file(folder, number), made)
            logger.info("teacher samples: %d of %d", (number + 1) * chunk, count)
    accelerator.wait_for_everyone()
    starts = [_start(number, chunk, seed, len(tokens), shape) for number in chunks]
    latents = torch.cat(
        [load_file(chunk_file(folder, number))["latents"].float() for number in chunks]
    )
    rows, noise = (torch.cat(parts) for parts in zip(*starts, strict=True))
    return Pairs(rows[:count], noise[:count], latents[:count])


def chunk_file(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:05d}.safetensors"


def _start(
    number: int, chunk: int, seed: int, prompts: int, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Rows and noise of a chunk: they need no saving."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    rows = torch.randint(prompts, (chunk,), generator=generator)
    return rows, torch.randn((chunk, *shape), generator=generator)


@torch.no_grad()
def _solve(
    pipeline: Any,
    accelerator: Accelerator,
    tokens: Tensor,
    empty: Tensor,
    noise: Tensor,
    wanted: Wanted,
) -> Tensor:
    """The teacher's guided samples (N, C, h, w), on the CPU."""
    solver: Any = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    solver.set_timesteps(wanted.steps)
    latents, device = noise.to(accelerator.device), accelerator.device
    with accelerator.autocast():
        context = torch.cat([empty.expand(len(tokens), -1), tokens])
        prompt_embeds = embed(pipeline, context).to(device)
        for timestep in solver.timesteps:
            predicted = guided(
                pipeline.unet, latents, timestep.to(device), prompt_embeds, wanted.guidance
            )
            latents = solver.step(predicted, timestep, latents).prev_sample
    return latents.float().cpu()
