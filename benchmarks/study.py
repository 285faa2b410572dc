"""The study: trains every row of ``study.yaml``, measures it, and writes it up.

    python benchmarks/study.py                # all of it; run again, it goes on where it stopped
    python benchmarks/study.py --rows k4 k1 --seeds 0
    python benchmarks/study.py --report       # docs/study.json, the table, the figures
    python benchmarks/study.py --check        # the measured rows against docs/study.json

One process, one row at a time. What is done is a file in ``--out``; nothing is done twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from study_report import check, report
from torch import Tensor

from tiue_core import TiuePipeline
from tiue_core.core.forward_process import guided_ddim, sequential
from tiue_core.core.noise import draw_noise
from tiue_core.core.schedule import OneWaySchedule
from tiue_core.core.unet import SplitUNet
from tiue_core.evaluate.metrics import frechet_distance, manifold
from tiue_core.evaluate.stickers import PROMPT_SEED, WORLD_SEED, look
from tiue_core.stickers.judge import Judge, labels, right
from tiue_core.stickers.render import render_pool, to_unit
from tiue_core.stickers.world import Scene, World
from tiue_core.train.recipe import DistillRecipe
from tiue_core.train.run import run

HERE = Path(__file__).parent
STUDY = yaml.safe_load((HERE / "study.yaml").read_text())
TEACHER = STUDY["base"]["teacher"]
GUIDANCE = STUDY["base"]["guidance"]
BATCH = 32

Latents = Callable[[Tensor, Tensor, Tensor], Tensor]  #: noise, prompt_embeds, empty -> z_0


def recipe_for(row: str, seed: int, out: Path) -> DistillRecipe:
    changes = STUDY["rows"][row].get("changes", {})
    return DistillRecipe.model_validate(
        {
            **STUDY["base"],
            "seed": seed,
            "out": out / f"{row}-{seed}",
            "pairs_from": out / "pairs",
            "images_from": out / "images",
            **changes,
        }
    )


def painter_for(row: str, seed: int, out: Path) -> tuple[TiuePipeline, Latents]:
    """The pipeline whose text encoder and autoencoder serve, and what paints its latents."""
    settings = STUDY["rows"][row]
    if "teacher_steps" in settings:
        pipeline = TiuePipeline.from_pretrained(TEACHER)

        def teacher(noise: Tensor, embeds: Tensor, empty: Tensor) -> Tensor:
            context = torch.cat([empty.expand_as(embeds), embeds])
            return guided_ddim(
                pipeline.unet,
                pipeline.scheduler,
                noise,
                context,
                steps=settings["teacher_steps"],
                guidance=GUIDANCE,
            )

        return pipeline, teacher
    source = TEACHER if settings.get("untrained") else out / f"{row}-{seed}" / "result"
    pipeline = TiuePipeline.from_pretrained(source)
    unet, schedule = SplitUNet(pipeline.unet), pipeline.schedule()
    if not settings.get("changes", {}).get("shared_encoder", True):
        return pipeline, lambda noise, embeds, _: sequential(unet, schedule, noise, embeds)[1]

    def student(noise: Tensor, embeds: Tensor, empty: Tensor) -> Tensor:
        features = unet.encode(noise, schedule.timesteps[0], embeds)
        return schedule.combine(noise, unet.decode(features, schedule.timesteps, embeds).float())

    return pipeline, student


@torch.no_grad()
def paint(
    pipeline: TiuePipeline,
    latents: Latents,
    prompts: list[str],
    seeds: list[int],
    half: bool = True,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1]; bfloat16 as in training unless ``half`` is off."""
    size, vae = pipeline.unet.config.sample_size, pipeline.vae
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        noise = draw_noise(seeds, (pipeline.unet.config.in_channels, size, size))
        embeds = pipeline.encode_prompt(["", *prompts])
        z = latents(noise, embeds[1:], embeds[:1]).float()
        return vae.decode(z / vae.config.scaling_factor).sample.float().clamp(-1, 1)


def paint_scenes(
    pipeline: TiuePipeline, latents: Latents, scenes: list[Scene], first: int
) -> Tensor:
    batches = []
    for start in range(0, len(scenes), BATCH):
        prompts = [scene.caption for scene in scenes[start : start + BATCH]]
        seeds = list(range(first + start, first + start + len(prompts)))
        batches.append(paint(pipeline, latents, prompts, seeds))
    return torch.cat(batches)


def measure(row: str, seed: int, out: Path, count: int) -> dict[str, Any]:
    """The columns of Table S1 on prompts, noises and scenes that depend on ``seed`` alone."""
    judge = Judge.load()
    size = judge.settings["kinds"], judge.settings["backgrounds"]
    single, pair = World(*size, pairs=0), World(*size, pairs=1)
    pipeline, latents = painter_for(row, seed, out)
    scenes = single.scenes(count, PROMPT_SEED + 100 * (seed + 1))
    things, background, features = look(judge, paint_scenes(pipeline, latents, scenes, 1000 * seed))
    hits, grounds = right((things, background), labels(single, scenes))
    twos = pair.scenes(count // 4, PROMPT_SEED + 100 * (seed + 1) + 1)
    two_look = look(judge, paint_scenes(pipeline, latents, twos, 1000 * seed + 500))[:2]
    two_hits, _ = right(two_look, labels(pair, twos))
    pixels = to_unit(render_pool(single, count, WORLD_SEED + 100 * (seed + 1)))
    real = look(judge, pixels)[2]
    return {
        "fid": frechet_distance(real, features),
        "fidelity": float((hits & grounds).float().mean()),
        "two_things": float(two_hits.float().mean()),
        **manifold(real, features),
    }


def cost(row: str, out: Path) -> dict[str, float]:
    """Seconds and memory of one picture, text encoder and autoencoder included; float32."""
    from tiue_core.bench.memory import Peak

    pipeline, latents = painter_for(row, STUDY["seeds"][0], out)
    once = lambda: paint(pipeline, latents, ["a cat on a blue background"], [0], half=False)  # noqa: E731
    once()
    before = Peak(torch.device("cpu"))
    with before:
        pass
    seconds = []
    with Peak(torch.device("cpu")) as peak:
        for _ in range(5):
            start = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - start)
    return {
        "seconds": sorted(seconds)[len(seconds) // 2],
        "memory_mb": (peak.bytes - before.bytes) / 1e6,
    }


@torch.no_grad()
def features_over_time(steps: int = 25, count: int = 8) -> dict[str, Any]:
    """Cosine similarity of the teacher's features between the steps of its own loop (steps, steps).

    ``encoder`` is the middle block and the last skip, ``decoder`` the last up block's output.
    """
    pipeline = TiuePipeline.from_pretrained(TEACHER)
    scenes = World(24, 8).scenes(count, PROMPT_SEED)
    embeds = pipeline.encode_prompt([scene.caption for scene in scenes])
    empty = pipeline.encode_prompt([""]).expand_as(embeds)
    schedule = OneWaySchedule.from_config(pipeline.scheduler, steps=steps)
    unet = SplitUNet(pipeline.unet)
    seen: dict[str, list[Tensor]] = {"encoder": [], "skips": [], "decoder": []}
    hook = pipeline.unet.up_blocks[-1].register_forward_hook(
        lambda _module, _args, output: last.append(output)
    )
    z = draw_noise(list(range(count)), (4, 16, 16))
    for timestep, (a, b) in zip(schedule.timesteps, schedule.coefficients.tolist(), strict=True):
        last: list[Tensor] = []
        predicted = []
        for context in (empty, embeds):
            features = unet.encode(z, timestep, context)
            predicted.append(unet.decode(features, timestep[None], context)[0])
        seen["encoder"].append(features.mid.flatten(1))
        seen["skips"].append(features.skips[-1].flatten(1))
        seen["decoder"].append(last[-1].flatten(1))
        z = a * z + b * (predicted[0] + GUIDANCE * (predicted[1] - predicted[0]))
    hook.remove()
    found: dict[str, Any] = {"timesteps": schedule.timesteps.tolist()}
    for name, parts in seen.items():
        unit = torch.nn.functional.normalize(torch.stack(parts), dim=-1)  # (steps, B, D)
        found[name] = torch.einsum("sbd,tbd->st", unit, unit).div(count).tolist()
    return found


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)


def work(row: str, seed: int, out: Path) -> None:
    """Train and measure one row with one seed, unless that is done."""
    folder, start = out / f"{row}-{seed}", time.perf_counter()
    counts = {"measured": STUDY["count"]}
    if row in STUDY["large"]["rows"]:
        counts["measured-large"] = STUDY["large"]["count"]
    files = {out / name / f"{row}-{seed}.json": count for name, count in counts.items()}
    missing = {file: count for file, count in files.items() if not file.is_file()}
    trained = not {"teacher_steps", "untrained"} & set(STUDY["rows"][row])
    if missing and trained and not (folder / "result" / "model_index.json").is_file():
        run(recipe_for(row, seed, out))
    trained_s = time.perf_counter() - start if trained else 0.0
    for file, count in missing.items():
        start = time.perf_counter()
        found = measure(row, seed, out, count)
        found.update(trained_s=trained_s, measured_s=time.perf_counter() - start)
        write(file, found)
        figures = "  ".join(f"{k} {v:.3f}" for k, v in found.items())
        print(f"{row} seed {seed}, {count} pictures: {figures}", flush=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--rows", nargs="*", default=list(STUDY["rows"]), choices=STUDY["rows"])
    parser.add_argument("--seeds", nargs="*", type=int, default=STUDY["seeds"])
    parser.add_argument("--report", action="store_true", help="write docs from what is measured")
    parser.add_argument("--check", action="store_true", help="what is measured against the docs")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        print(json.dumps(cost(options.cost, options.out)))
        return
    if options.check:
        sys.exit(check(options.out))
    if not options.report:
        turns = {row: STUDY["rows"][row]["turn"] for row in options.rows}
        for turn in sorted(set(turns.values())):
            for seed in options.seeds:
                for row in (row for row in options.rows if turns[row] == turn):
                    work(row, seed, options.out)
        if not (options.out / "features.json").is_file():
            write(options.out / "features.json", features_over_time())
        if set(options.rows) != set(STUDY["rows"]):
            return  # a part is no study; --report writes up what there is

    def pictures(row: str, prompts: list[str], seeds: list[int]) -> Tensor:
        return paint(*painter_for(row, 0, options.out), prompts, seeds)

    report(STUDY, options.out, os.fspath(Path(__file__)), pictures)


if __name__ == "__main__":
    main()
