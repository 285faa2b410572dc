"""What the miniature is worth: the judge's verdict and distances to the world, side by side.

Prompts and scenes are made fresh from seeds that no training run uses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..core.forward_process import guided_ddim
from ..core.noise import draw_noise
from ..pipelines.base import TiuePipeline
from ..pipelines.vae import decode
from ..stickers.judge import Judge, labels, right
from ..stickers.render import render_pool, to_unit
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
) -> dict[str, float]:
    """Shares of right things and backgrounds on ``count`` fresh prompts; distances to ``real``."""
    scenes = world.scenes(count, PROMPT_SEED)
    things, background, features = look(judge, paint_all(painter, scenes))
    hits, grounds = right((things, background), labels(world, scenes))
    figures = {
        "things_right": float(hits.float().mean()),
        "background_right": float(grounds.float().mean()),
    }
    if real is not None:
        figures["fid"] = frechet_distance(real, features)
        figures.update(manifold(real, features))
    return figures


def best_guidance(
    judge: Judge, world: World, teacher: TiuePipeline, count: int
) -> tuple[float, dict[float, dict[str, float]]]:
    """The scale at which the teacher is right most often, and what every scale gave."""
    found = {
        scale: measure(judge, world, paint_teacher(teacher, scale), None, count)
        for scale in GUIDANCE
    }
    return max(found, key=lambda scale: sum(found[scale].values())), found


def reconstruction(pipeline: TiuePipeline, world: World, count: int) -> float:
    """Mean PSNR in dB of the autoencoder on fresh scenes, peak-to-peak 2 in [-1, 1]."""
    pixels = render_pool(world, count, WORLD_SEED)
    found = []
    with torch.no_grad():
        for batch in pixels.split(BATCH):
            images = to_unit(batch)
            latents = pipeline.vae.encode(images).latent_dist.mean
            error = pipeline.vae.decode(latents).sample.clamp(-1, 1) - images
            found.append(-10 * torch.log10(error.square().mean((1, 2, 3)) / 4))
    return float(torch.cat(found).mean())


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
    pixels = to_unit(render_pool(single, count, WORLD_SEED))
    things, background, real = look(judge, pixels)
    hits, grounds = right((things, background), labels(single, single.scenes(count, WORLD_SEED)))
    mixed = world.scenes(count, WORLD_SEED + 1)
    mixed_look = look(judge, to_unit(render_pool(world, count, WORLD_SEED + 1)))[:2]
    mixed_hits, mixed_grounds = right(mixed_look, labels(world, mixed))
    result: dict = {
        "count": count,
        "world": {"kinds": world.kinds, "backgrounds": world.backgrounds},
        "judge": {
            "one_thing": float((hits & grounds).float().mean()),
            "all_scenes": float((mixed_hits & mixed_grounds).float().mean()),
        },
        "systems": {},
    }
    any_pipeline = teacher or next(iter(students.values()))
    say("the autoencoder")
    result["autoencoder_psnr"] = reconstruction(any_pipeline, world, min(count, 256))
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
        figures["two_things_right"] = two["things_right"]
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
