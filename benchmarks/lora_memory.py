"""One update at Stable Diffusion 2.1's shape: the memory it took, beside the estimate.

    python benchmarks/lora_memory.py --method transfer paired --out docs/lora-memory.json

Weights are random, on which memory does not depend. Prior preservation adds nothing to the peak,
since its backward pass is one of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator

from tiue_core.bench.memory import Peak
from tiue_core.bench.shapes import models
from tiue_core.core.forward_process import Noising
from tiue_core.optimize.cpu import give_back_pages
from tiue_core.train.lora.memory import estimate
from tiue_core.train.lora.parts import Group, Parts, Prior
from tiue_core.train.lora.stages import StudentStage, TransferStage
from tiue_core.train.pairs import Pairs
from tiue_core.train.recipe import LoraRecipe


def pipeline_of(shape: str) -> Any:
    made = models(shape)
    return SimpleNamespace(
        unet=made.unet,
        vae=made.vae,
        text_encoder=made.text_encoder,
        tokenizer=SimpleNamespace(model_max_length=made.tokens.shape[1]),
        scheduler=made.scheduler,
        vae_scale_factor=made.factor,
        schedule=lambda: made.schedule("exact"),
    )


def one_update(recipe: LoraRecipe, pipeline: Any, teacher: Any) -> dict[str, float]:
    batch, unet = recipe.batch_size, pipeline.unet
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    shape = (4, size, size)
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(batch, pipeline.tokenizer.model_max_length, width, generator=generator)
    latents = torch.randn(batch, *shape, generator=generator)
    parts = Parts(
        pipeline=pipeline,
        teacher=teacher,
        schedule=pipeline.schedule(),
        noising=Noising.from_scheduler(pipeline.scheduler),
        groups=[Group(latents, embeds)],
        captions=[""] * batch,
        embeds=embeds,
        empty=embeds[:1],
        prior=Prior(embeds, latents, latents) if recipe.prior else None,
        shape=shape,
    )
    first = recipe.method == "transfer"
    stage: Any = (
        TransferStage(recipe, parts) if first else StudentStage(recipe, parts, recipe.out.parent)
    )
    precision = recipe.precision
    stage.accelerator = Accelerator(cpu=True, mixed_precision=precision)
    if not first:
        stage.split = parts.halves
        stage.pairs = Pairs(torch.arange(batch), latents, latents)
    return {name: float(value) for name, value in stage.update(0, generator).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sd21")
    parser.add_argument("--method", nargs="*", default=["transfer", "paired"])
    parser.add_argument("--prior", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true", help="without gradient checkpointing")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    give_back_pages()
    report = {}
    for method in arguments.method:
        recipe = LoraRecipe(
            out=Path("unused.safetensors"), images=Path("unused"), method=method, batch_size=1,
            prior=arguments.prior, gradient_checkpointing=not arguments.plain,
        )  # fmt: skip
        pipeline = pipeline_of(arguments.shape)
        pixels = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        began = time.process_time()
        # the stage that is run here, not the worst of both
        found = estimate(recipe, pipeline, [(pixels, pixels)])
        cost = time.process_time() - began
        print(method, found, f"in {cost:.0f} s", flush=True)
        teacher = pipeline_of(arguments.shape).unet
        gc.collect()
        began = time.process_time()
        with Peak(torch.device("cpu")) as peak:
            losses = one_update(recipe, pipeline, teacher)
        report[method] = {
            "estimate_gb": round(found.total / 1e9, 2),
            "measured_gb": round(peak.bytes / 1e9, 2),
            "off_percent": round(100 * (found.total / peak.bytes - 1), 1),
            "cpu_seconds": round(time.process_time() - began),
            "estimate_cpu_seconds": round(cost),
            "losses": losses,
        }
        print(method, report[method], flush=True)
        del pipeline, teacher
        gc.collect()
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
