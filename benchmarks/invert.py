"""Pictures edited by one pass from their own noise, beside img2img by the student's teacher.

    python benchmarks/invert.py --count 16

Drawn scenes of one thing are edited to another background, and to another thing. "matcher": the
thing asked for, by the ruler of stickers/matcher.py; "background": the colour asked for; "place":
overlap of the thing's outline with that of the drawn one (intersection over union); "again":
PSNR of the repainted picture, unedited, beside the autoencoder's round trip; CPU seconds a picture.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time

import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from torch import Tensor

from tiue_core import TiuePipeline
from tiue_core.core.invert import invert
from tiue_core.core.noise import draw_noise
from tiue_core.core.one_pass import one_pass
from tiue_core.pipelines.vae import decode, encode_mean
from tiue_core.stickers import matcher
from tiue_core.stickers.render import render, to_unit
from tiue_core.stickers.world import Scene, World


def said(scene: Scene) -> str:
    return f"a {scene.things[0].kind} on a {scene.background} background"


def changed(world: World, scene: Scene, what: str) -> Scene:
    """The same with another background or another thing."""
    if what == "background":
        names = world.background_names
        return dataclasses.replace(
            scene, background=names[(names.index(scene.background) + 3) % len(names)]
        )
    names, thing = world.kind_names, scene.things[0]
    kind = names[(names.index(thing.kind) + 7) % len(names)]
    return dataclasses.replace(scene, things=(dataclasses.replace(thing, kind=kind),))


def outline(images: Tensor) -> Tensor:
    ground = torch.stack([matcher.ground(image) for image in images])
    return (images - ground[:, :, None, None]).abs().amax(1) > matcher.DIFFERS


def row(name: str, world: World, images: Tensor, drawn: Tensor, asked: list[Scene]) -> None:
    images = images.clamp(-1, 1)
    right = matcher.match(world, images, asked).right.float().mean()
    grounds = [matcher.nearest_background(matcher.ground(image)) for image in images]
    background = sum(g == a.background for g, a in zip(grounds, asked, strict=True)) / len(asked)
    ours, theirs = outline(images), outline(drawn)
    place = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2)).clamp(min=1)
    print(f"| {name} | {right:.0%} | {background:.0%} | {place.mean():.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="*", default=[30, 80])
    arguments = parser.parse_args()
    count, world = arguments.count, World()
    scenes = [one for one in world.scenes(4 * count + 8, seed=900_003) if len(one.things) == 1]
    scenes = scenes[:count]
    edits = {
        what: [changed(world, one, what) for one in scenes] for what in ("background", "thing")
    }
    drawn = to_unit(render(scenes))
    pipe = TiuePipeline.from_pretrained("stickers")
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        model.requires_grad_(False)
    schedule, unet = pipe.schedule(), pipe.split_unet
    latents = encode_mean(pipe.vae, drawn)
    noise = draw_noise(list(range(count)), latents.shape[1:])
    own = pipe.encode_prompt([said(one) for one in scenes])
    context = {what: pipe.encode_prompt([said(o) for o in asked]) for what, asked in edits.items()}

    def painted(x: Tensor, prompt: Tensor) -> Tensor:
        return decode(pipe.vae, one_pass(unet, schedule, x, prompt).latents)

    print("| edited by | matcher | background | place |\n| --- | --- | --- | --- |")
    for what, asked in edits.items():
        row(f"{what}: fresh noise", world, painted(noise, context[what]), drawn, asked)
    trip, lines = decode(pipe.vae, latents), []
    for steps in arguments.steps:
        began = time.process_time()
        found, apart = invert(
            lambda x: one_pass(unet, schedule, x, own).latents, latents, noise, steps
        )
        seconds = (time.process_time() - began) / count
        again = (painted(found, own).clamp(-1, 1) - trip).square().mean((1, 2, 3))
        psnr = (10 * torch.log10(4 / again)).mean()
        share = (apart / latents.std((1, 2, 3))).mean()
        lines.append(f"{steps} steps: again {psnr:.1f} dB, latents {share:.0%}, {seconds:.1f} s")
        for what, asked in edits.items():
            name = f"{what}: inverted, {steps} steps"
            row(name, world, painted(found, context[what]), drawn, asked)
    parts = {k: getattr(pipe, k) for k in ("vae", "text_encoder", "tokenizer")}
    teacher = TiuePipeline.from_pretrained("stickers-teacher")
    stock = StableDiffusionImg2ImgPipeline(
        **parts,
        unet=copy.copy(teacher.unet),
        scheduler=DDIMScheduler.from_config(teacher.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    for strength in (0.6, 0.8, 0.9):
        for what, asked in edits.items():
            began = time.process_time()
            images = stock(
                [said(one) for one in asked],
                image=(drawn + 1) / 2,
                strength=strength,
                guidance_scale=3.0,
                num_inference_steps=50,
                generator=[torch.Generator().manual_seed(i) for i in range(count)],
                output_type="pt",
            ).images
            seconds = (time.process_time() - began) / count
            row(f"{what}: img2img, strength {strength}", world, images * 2 - 1, drawn, asked)
        lines.append(f"img2img, strength {strength}: {seconds:.1f} s")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
