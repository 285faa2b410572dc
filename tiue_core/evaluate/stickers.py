"""What the miniature is worth: the judge's verdict and distances to the world, side by side.

Prompts and scenes are made fresh from seeds that no training run uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.forward_process import guided_ddim
from ..core.noise import draw_noise
from ..pipelines.base import TiuePipeline
from ..pipelines.vae import decode, encode_mean
from ..stickers.judge import Judge, labels, right
from ..stickers.matcher import Match, match
from ..stickers.nearest import nearest, spread
from ..stickers.render import render, render_pool, to_unit
from ..stickers.world import Scene, World
from .metrics import frechet_distance, manifold

PROMPT_SEED = 900_001  #: scenes whose captions are the prompts
WORLD_SEED = 900_002  #: scenes the pictures are measured against
GUIDANCE = (2.0, 3.0, 4.5)  #: where the teacher's best is looked for
BATCH = 32

Painter = Callable[[list[str], list[int]], Tensor]  #: prompts, seeds -> images in [-1, 1]


def paint_student(pipeline: TiuePipeline) -> Painter:
    def paint(prompts: list[str], seeds: list[int]) -> Tensor:
        images = pipeline(prompts, seed=seeds, output_type="pt", batch_size=BATCH).images
        return images * 2 - 1

    return paint


def paint_teacher(pipeline: TiuePipeline, guidance: float, steps: int = 50) -> Painter:
    """The teacher as it is meant to run: ``steps`` of guided DDIM."""
    size, vae = pipeline.unet.config.sample_size, pipeline.vae
    shape = (pipeline.unet.config.in_channels, size, size)

    @torch.no_grad()
    def paint(prompts: list[str], seeds: list[int]) -> Tensor:
        context = pipeline.encode_prompt([*([""] * len(prompts)), *prompts])
        latents = guided_ddim(
            pipeline.unet,
            pipeline.scheduler,
            draw_noise(seeds, shape).to(context),
            context,
            steps=steps,
            guidance=guidance,
        )
        return decode(vae, latents).clamp(-1, 1)

    return paint


@torch.no_grad()
def look(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of things and background, and features, of images (N, 3, H, W)."""
    parts = [(*judge(batch), judge.features(batch)) for batch in images.float().split(BATCH)]
    things, background, features = (torch.cat(part) for part in zip(*parts, strict=True))
    return things, background, features


def paint_all(painter: Painter, scenes: list[Scene]) -> Tensor:
    """One picture a scene, from its caption alone; seeds 0, 1, ..."""
    batches = []
    for first in range(0, len(scenes), BATCH):
        prompts = [scene.caption for scene in scenes[first : first + BATCH]]
        batches.append(painter(prompts, list(range(first, first + len(prompts)))).float().cpu())
    return torch.cat(batches)


def measure(
    judge: Judge, world: World, painter: Painter, real: Tensor | None, count: int
) -> dict[str, Any]:
    """What ``verdict`` says of ``count`` fresh prompts; distances to the features ``real``."""
    scenes = world.scenes(count, PROMPT_SEED)
    return verdict(judge, world, paint_all(painter, scenes), scenes, real)


def verdict(
    judge: Judge, world: World, images: Tensor, scenes: list[Scene], real: Tensor | None = None
) -> dict[str, Any]:
    """Both rulers on pictures of ``scenes``: shares that are right, fit and edges; per kind."""
    things, background, features = look(judge, images)
    hits, grounds = right((things, background), labels(world, scenes))
    found = match(world, images, scenes)
    figures: dict[str, Any] = {
        "things_right": float(hits.float().mean()),
        "background_right": float(grounds.float().mean()),
        **found.means(),
        "kinds": by_kind(scenes, found),
    }
    if all(len(scene.things) == 1 for scene in scenes):
        figures["spread"] = spread(nearest(world, images, scenes), scenes)
    if real is not None:
        figures["fid"] = frechet_distance(real, features)
        figures.update(manifold(real, features))
    return figures


def wholly_right(seen: Sequence[Tensor], world: World, scenes: list[Scene]) -> float:
    """The share of scenes of which things and background are both right; ``seen`` is their
    logits."""
    things, background = seen
    hits, grounds = right((things, background), labels(world, scenes))
    return float((hits & grounds).float().mean())


def by_kind(scenes: list[Scene], found: Match) -> dict[str, dict[str, float]]:
    """The matcher's figures of every kind that was asked for alone."""
    rows: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        if len(scene.things) == 1:
            rows.setdefault(scene.things[0].kind, []).append(index)
    return {kind: found.of(chosen).means() for kind, chosen in sorted(rows.items())}


def best_guidance(
    judge: Judge, world: World, teacher: TiuePipeline, count: int
) -> tuple[float, dict[float, dict[str, Any]]]:
    """The scale at which both rulers like the teacher best, and what every scale gave."""
    found = {
        scale: measure(judge, world, paint_teacher(teacher, scale), None, count)
        for scale in GUIDANCE
    }
    worth = ("things_right", "background_right", "matcher_right", "fit")
    return max(found, key=lambda scale: sum(found[scale][name] for name in worth)), found


def round_trip(vae: Any, images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] to latents and back."""
    with torch.no_grad():
        parts = [decode(vae, encode_mean(vae, batch)).float() for batch in images.split(BATCH)]
    return torch.cat(parts).clamp(-1, 1)


def reconstruction(pipeline: TiuePipeline, world: World, count: int) -> float:
    """Mean PSNR in dB of the autoencoder on fresh scenes, peak-to-peak 2 in [-1, 1]."""
    images = to_unit(render_pool(world, count, WORLD_SEED))
    error = (round_trip(pipeline.vae, images) - images).square().mean((1, 2, 3))
    return float((-10 * torch.log10(error / 4)).mean())


def _two(figures: dict[str, Any]) -> dict[str, float]:
    """A row's entries of pictures with two things."""
    return {
        "two_things_right": figures["things_right"],
        "two_matcher_right": figures["matcher_right"],
    }


def report(
    students: dict[str, TiuePipeline],
    teacher: TiuePipeline | None,
    judge: Judge,
    *,
    count: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Everything the model card says, as one object."""
    settings = judge.settings
    world = World(settings["kinds"], settings["backgrounds"])
    single = World(settings["kinds"], settings["backgrounds"], pairs=0)
    pair = World(settings["kinds"], settings["backgrounds"], pairs=1)
    say("the world and its judge")
    drawn = single.scenes(count, WORLD_SEED)
    pixels = to_unit(render(drawn))
    *seen_alone, real = look(judge, pixels)
    mixed = world.scenes(count, WORLD_SEED + 1)
    *seen_mixed, _ = look(judge, to_unit(render_pool(world, count, WORLD_SEED + 1)))
    result: dict = {
        "count": count,
        "world": {"kinds": world.kinds, "backgrounds": world.backgrounds},
        "judge": {
            "one_thing": wholly_right(seen_alone, single, drawn),
            "all_scenes": wholly_right(seen_mixed, world, mixed),
        },
        "systems": {},
    }
    any_pipeline = teacher or next(iter(students.values()))
    say("the autoencoder")
    few = min(count, 256)
    result["autoencoder_psnr"] = reconstruction(any_pipeline, world, few)
    seen = round_trip(any_pipeline.vae, pixels[:few])
    result["ceilings"] = {
        "drawn scenes": verdict(judge, single, pixels[:few], drawn[:few]),
        "through the autoencoder": verdict(judge, single, seen, drawn[:few], real),
    }
    doubles = pair.scenes(min(count, 128), WORLD_SEED)
    twice = to_unit(render(doubles))
    for name, images in zip(
        result["ceilings"], (twice, round_trip(any_pipeline.vae, twice)), strict=True
    ):
        two = verdict(judge, pair, images, doubles)
        result["ceilings"][name].update(_two(two))
    painters: dict[str, Painter] = {}
    if teacher is not None:
        say("the teacher's best guidance")
        scale, sweep = best_guidance(judge, single, teacher, min(count, 128))
        result["guidance"] = {"best": scale, "sweep": {str(k): v for k, v in sweep.items()}}
        painters["teacher"] = paint_teacher(teacher, scale)
    painters.update({name: paint_student(pipeline) for name, pipeline in students.items()})
    for name, painter in painters.items():
        say(f"{name}: {count} pictures")
        figures = measure(judge, single, painter, real, count)
        two = measure(judge, pair, painter, None, min(count, 128))
        figures.update(_two(two))
        result["systems"][name] = figures
    return result


def contact_sheet(
    pipeline: TiuePipeline, judge: Judge, file: Path, count: int = 32, columns: int = 8
) -> None:
    """``count`` fresh prompts, a picture each with its words under it."""
    import textwrap

    from PIL import Image, ImageDraw

    world = World(judge.settings["kinds"], judge.settings["backgrounds"])
    prompts = [scene.caption for scene in world.scenes(count, PROMPT_SEED + 1)]
    images = pipeline(prompts, seed=0, batch_size=BATCH).images
    width, height = images[0].width + 8, images[0].height + 52
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        x, y = index % columns * width + 4, index // columns * height + 4
        sheet.paste(image, (x, y))
        lines = "\n".join(textwrap.wrap(prompt, 24))
        draw.multiline_text((x, y + image.height + 2), lines, fill="black", font_size=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
