"""One distillation step of Stable Diffusion 2.1 with random weights: its memory against the plan.

    python benchmarks/distill_sd21.py                # 512 px, batch 1; minutes on a CPU
    python benchmarks/distill_sd21.py --small        # the same code on a small UNet

The settings are what fits a small machine: networks in bfloat16, gradient checkpointing, no moving
average. Weights are random, which neither memory nor time depends on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from tiue_core.bench.memory import Peak
from tiue_core.bench.shapes import _SCHEDULER, _UNETS
from tiue_core.core.forward_process import Noising
from tiue_core.core.schedule import OneWaySchedule
from tiue_core.train.loop import accelerator_for
from tiue_core.train.plan import GIB, plan
from tiue_core.train.recipe import DistillRecipe
from tiue_core.train.shown import Shown
from tiue_core.train.tasks.distill import DistillTask

TOKENS = 77


class RandomTask(DistillTask):
    """The task with a UNet of random weights and random prompt embeddings."""

    config: dict[str, Any] = _UNETS["sd21"]

    def _load(self) -> None:
        torch.set_default_dtype(torch.bfloat16)  # never in float32: that alone is 3.5 GB
        unet = UNet2DConditionModel(**self.config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        scheduler = DDIMScheduler(**_SCHEDULER)
        self.pipeline = SimpleNamespace(
            unet=unet, vae=None, vae_scale_factor=8, scheduler=scheduler, components={}
        )
        self.prompts, self.empty = ["", ""], torch.zeros(1, TOKENS, dtype=torch.int64)
        self.tokens = self.empty
        self.schedule = OneWaySchedule.from_config(scheduler, steps=self.recipe.decoders)

    def prepare(self, accelerator: Any) -> None:
        self.accelerator, self.shown = accelerator, Shown()
        self.student = self.split(self.modules["student"])
        self.noising = Noising.from_scheduler(self.pipeline.scheduler)
        width = self.teacher.config.cross_attention_dim
        some = torch.randn(1, TOKENS, width, dtype=torch.bfloat16)
        self.embeds = lambda rows: (some.expand(len(rows), -1, -1),) * 2  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--latent", type=int, default=64, help="side of the latents; 64 = 512 px")
    parser.add_argument("--out", default=None, help="write the figures here as JSON")
    options = parser.parse_args()
    if options.small:
        RandomTask.config = {"cross_attention_dim": 64, "block_out_channels": (64, 128, 128, 128)}
    recipe = DistillRecipe(
        task="distill",
        out="/tmp/distill-sd21",
        teacher="random",
        steps=2,
        batch_size=1,
        learning_rate=1e-6,
        precision="bf16",
        weights="bfloat16",
        gradient_checkpointing=True,
        world={},
        latent_size=options.latent,
    )
    task, accelerator = RandomTask(recipe), accelerator_for(recipe)
    start = time.perf_counter()
    foreseen = plan(task, accelerator)
    print(
        "\n".join(foreseen.lines()), f"(found in {time.perf_counter() - start:.0f} s)", flush=True
    )
    task.prepare(accelerator)
    for optimizer in task.optimizers.values():  # Adam's state, as after a first update
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    start = time.perf_counter()
    with Peak(torch.device("cpu")) as peak:
        logs = task.update(1, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - start
    found = {
        "foreseen_gib": foreseen.peak / GIB,
        "measured_gib": peak.bytes / GIB,
        "error": foreseen.peak / peak.bytes - 1,
        "seconds": seconds,
        "tflop": foreseen.flops / 1e12,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "student_parameters": foreseen.student,
        "losses": {name: float(value) for name, value in logs.items()},
    }
    print(json.dumps(found, indent=1))
    if options.out:
        with open(options.out, "w") as file:  # noqa: PTH123
            file.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
