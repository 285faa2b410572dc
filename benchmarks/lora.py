"""A new thing and a style, three ways and naively: what a LoRA gives and what it costs.

    python benchmarks/lora.py                       # all, into docs/lora.json; resumes
    python benchmarks/lora.py --only owl/transfer

New things are glyphs that neither teacher nor student ever saw, on four backgrounds; pictures are
asked for on the four others. The judge is trained on rendered scenes that hold them too. A style is
shown on twelve kinds and four backgrounds and asked for on the twelve and four others.

What a method adds to `transfer` begins where that run ended, which is where it would get by itself:
the first stage's updates are the same, so they are made once, and their time is counted in.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch.nn import functional as F

from tiue_core import students
from tiue_core.evaluate.stickers import (
    PROMPT_SEED,
    WORLD_SEED,
    look,
    paint_student,
)
from tiue_core.io.messages import quiet_libraries
from tiue_core.stickers.judge import Judge, labels, right
from tiue_core.stickers.render import render_pool, to_unit
from tiue_core.stickers.world import Scene, World
from tiue_core.students.lora import Lora, load_loras
from tiue_core.train.grids import grid
from tiue_core.train.lora.run import train_lora
from tiue_core.train.recipe import JudgeRecipe, LoraRecipe
from tiue_core.train.run import run

TRIGGER = "zorb"
NEW = ("owl", "octopus", "cactus", "robot")  #: kinds the judge learns on top; any may be taught
SHOWN = ("red", "yellow", "green", "blue")  #: backgrounds of the pictures that are learned
PICTURES, STYLED = 12, 20
LINE = 5  #: px of an outline
BLOCK = 8  #: px of a block
STUDENT = {"teacher": "stickers", "method": "transfer"}  #: taught as if it were no one-pass model
AFTER = {"steps": 0, "init": "owl/transfer"}  #: goes on from there
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "owl/transfer": ("owl", {"method": "transfer"}),
    "owl/paired": ("owl", {"method": "paired", **AFTER}),
    "owl/one-pass": ("owl", {"method": "one-pass", "student_steps": 100, **AFTER}),  # as dear
    "owl/naive": ("owl", STUDENT),
    "owl/naive-without-prior": ("owl", {**STUDENT, "prior": 0.0}),
    "octopus/default": ("octopus", {}),
    "pixelated/style": ("pixelated", {"style": True}),
    "outlined/style": ("outlined", {"style": True}),
}


def scenes(kinds: World, count: int, seed: int, shown: bool) -> list[Scene]:
    """One-thing scenes on the backgrounds that were shown, or on the others."""
    drawn = kinds.scenes(40 * count, seed)
    return [scene for scene in drawn if (scene.background in SHOWN) == shown][:count]


def caption(scene: Scene, subject: str) -> str:
    """The scene's words with the trigger for the new thing, or before the thing for a style."""
    kind = scene.things[0].kind
    article = "an" if kind[0] in "aeiou" else "a"
    new = f"a {TRIGGER}" if subject not in STYLES else f"a {TRIGGER} {kind}"
    return scene.caption.replace(f"{article} {kind}", new)


def outlined(scene: Scene) -> Image.Image:
    """The scene with a bold line around its thing: white on dark grounds, black on light ones."""
    image = scene.render()
    ground = Image.new("RGB", image.size, scene.colour)
    ink = ImageChops.difference(image, ground).convert("L").point(lambda v: 255 * (v > 10))
    line = ImageChops.subtract(ink.filter(ImageFilter.MaxFilter(2 * LINE + 1)), ink)
    colour = "black" if sum(scene.colour) > 384 else "white"
    image.paste(colour, mask=line)
    return image


def pixelated(scene: Scene) -> Image.Image:
    """The scene in blocks of `BLOCK` pixels, each as its own mean."""
    image = scene.render()
    small = image.resize([side // BLOCK for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


STYLES: dict[str, Callable[[Scene], Image.Image]] = {"outlined": outlined, "pixelated": pixelated}


def halves(shown: bool) -> World:
    """Of the kinds it knows: the twelve a style is shown on, or the others."""
    names = World().kind_names
    return World(kinds=0, more=tuple(names[:12] if shown else names[12:]), pairs=0)


def pictures(subject: str, folder: Path) -> Path:
    """The folder to learn from."""
    styled = STYLES.get(subject)
    world = halves(True) if styled else World(kinds=0, more=(subject,), pairs=0)
    count = STYLED if styled else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes(world, count, 77, shown=True)):
        image = styled(scene) if styled else scene.render()
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption(scene, subject))
    return folder


def things_judge(runs: Path) -> tuple[Judge, World]:
    world = World(more=NEW, pairs=0)
    folder = runs / "judge"
    if not (folder / "result").is_dir():
        recipe = JudgeRecipe(
            task="judge", out=folder, world={"more": NEW}, steps=800, batch_size=64, pool=4000,
            learning_rate=2e-3, warmup=50, decay=0.5, ema=0.99, sample_every=400,
        )  # fmt: skip
        run(recipe)
    return Judge.load(folder / "result"), world


def pool_of(drawn: list[Scene], drawer: Callable[[Scene], Image.Image]) -> torch.Tensor:
    """Scenes as pictures (N, 3, 128, 128) in [-1, 1]."""
    images = [drawer(scene) for scene in drawn]
    return torch.stack([to_unit(torch.from_numpy(np.array(i)).permute(2, 0, 1)) for i in images])


@torch.no_grad()
def through(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """As every student's pictures are: made by the autoencoder."""
    parts = images.split(32)
    return torch.cat(
        [vae.decode(vae.encode(p).latent_dist.mean).sample.clamp(-1, 1) for p in parts]
    )


def style_judge(runs: Path, vae: Any, style: str) -> Judge:
    """In a style or not, whatever is shown; half of its pictures have been through the autoencoder,
    whose softness is no style."""
    folder = runs / f"{style}-judge"
    if not folder.is_dir():
        torch.manual_seed(0)
        judge = Judge(2, 8, (32, 48, 64))
        drawn = World(pairs=0).scenes(480, 5)
        pools = [pool_of(drawn, drawer) for drawer in (Scene.render, STYLES[style])]
        pools = [torch.cat([pool, through(vae, pool)]) for pool in pools]
        optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(250):
            rows = torch.randint(len(pools[0]), (16,), generator=generator)
            images = torch.cat([pool[rows] for pool in pools])
            images = images + 0.05 * torch.randn(images.shape, generator=generator)
            styled = torch.arange(len(images)) // 16
            F.cross_entropy(judge(images)[0], styled).backward()
            optimizer.step()
            optimizer.zero_grad()
        judge.save(folder)
    return Judge.load(folder)


def share(hits: torch.Tensor) -> float:
    return round(float(hits.float().mean()), 4)


class Measure:
    """Both judges, and what they make of rendered scenes and of the base student."""

    def __init__(self, runs: Path, count: int) -> None:
        self.runs, self.count = runs, count
        self.judge, self.world = things_judge(runs)
        self.base_pipe = students.load("stickers")
        vae = self.base_pipe.vae
        self.styles = {style: style_judge(runs, vae, style) for style in STYLES}
        self.old = World(pairs=0).scenes(2 * count, PROMPT_SEED)

    def judges(self) -> dict[str, float]:
        """On rendered scenes, before anything is judged by them."""
        world, count = self.world, self.count
        rendered = world.scenes(4 * count, WORLD_SEED)
        pixels = to_unit(render_pool(world, 4 * count, WORLD_SEED))
        hits, _ = right(look(self.judge, pixels)[:2], labels(world, rendered))
        new = torch.tensor([scene.things[0].kind in NEW for scene in rendered])
        vae = self.base_pipe.vae
        figures = {"things_right": share(hits), "new_things_right": share(hits[new])}
        for kind in ("owl", "octopus"):  # as well as the autoencoder can show them
            drawn = scenes(World(kinds=0, more=(kind,), pairs=0), count, WORLD_SEED, shown=False)
            seen = look(self.judge, through(vae, pool_of(drawn, Scene.render)))[:2]
            hits, _ = right(seen, labels(world, drawn))
            figures[f"{kind}_right_after_the_autoencoder"] = share(hits)
        drawn = World(pairs=0).scenes(count, WORLD_SEED)
        for style, judge in self.styles.items():
            both = [through(vae, pool_of(drawn, how)) for how in (Scene.render, STYLES[style])]
            told = [judge(images)[0].argmax(1) == styled for styled, images in enumerate(both)]
            figures[f"{style}_right_after_the_autoencoder"] = share(torch.cat(told))
        return figures

    def asked(self, subject: str) -> tuple[list[Scene], list[str]]:
        world = halves(False) if subject in STYLES else World(kinds=0, more=(subject,), pairs=0)
        found = scenes(world, self.count, PROMPT_SEED + 5, shown=False)
        return found, [caption(scene, subject) for scene in found]

    def of(self, pipe: Any, subject: str, sheet: Path | None = None) -> dict[str, float]:
        """Shares of pictures with the new thing (or style), and of old things still right."""
        painter = paint_student(pipe)
        asked, prompts = self.asked(subject)
        new = painter(prompts, list(range(len(prompts))))
        things, background, _ = look(self.judge, new)
        targets = labels(self.world, asked)
        hits, grounds = right((things, background), targets)
        figures = {"new_background": share(grounds)}
        if subject in STYLES:
            figures["new"] = share(self.styles[subject](new)[0].argmax(1) == 1)
            figures["new_thing_right"] = share(hits)
        else:
            figures["new"] = share(hits)
        old = painter([scene.caption for scene in self.old], list(range(len(self.old))))
        old_hits, old_grounds = right(look(self.judge, old)[:2], labels(self.world, self.old))
        figures |= {"old": share(old_hits), "old_background": share(old_grounds)}
        if sheet is not None:
            grid(torch.cat([new[:16], old[:8]]), 8).save(sheet, quality=88)
        return figures


def learned(system: str, runs: Path) -> tuple[Path, dict[str, Any]]:
    """A system's LoRA, trained if it is not there, and what that took."""
    subject, settings = SYSTEMS[system]
    out = runs / f"{system.replace('/', '-')}.safetensors"
    told = out.with_suffix(".json")
    if not out.is_file() or not told.is_file():
        images = pictures(subject, runs / "pictures" / subject)
        before, spent = learned(settings["init"], runs) if "init" in settings else (None, {})
        settings = {**settings, "init": before}
        recipe = LoraRecipe(out=out, images=images, trigger=TRIGGER, **settings)
        began, wall = time.process_time(), time.monotonic()
        train_lora(recipe)
        took = {
            "cpu_seconds": round(time.process_time() - began) + spent.get("cpu_seconds", 0),
            "seconds": round(time.monotonic() - wall) + spent.get("seconds", 0),
            "threads": torch.get_num_threads(),
        }
        told.write_text(json.dumps(took))
    return out, json.loads(told.read_text())


def strength_zero_is_the_base(file: Path, base: Any) -> bool:
    pipe = students.load("stickers")
    load_loras(pipe, [Lora(file, 0.0)])
    both = [p("a cat on a blue background", seed=3, output_type="pt").images for p in (base, pipe)]
    return torch.equal(*both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/lora"))
    parser.add_argument("--out", type=Path, default=Path("docs/lora.json"))
    parser.add_argument("--sheets", type=Path, default=Path("docs/lora"))
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--count", type=int, default=96, help="pictures of the new; old: twice")
    parser.add_argument("--train", action="store_true", help="train only")
    arguments = parser.parse_args()
    quiet_libraries()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if arguments.train:
        for system in arguments.only:
            print(system, *learned(system, arguments.runs), flush=True)
        return
    out = arguments.out
    report = json.loads(out.read_text()) if out.is_file() else {}
    measure = Measure(arguments.runs, arguments.count)
    report.setdefault("count", arguments.count)
    report["judges"] = measure.judges()
    print(report["judges"], flush=True)
    base = report.setdefault("base", {})
    systems = report.setdefault("systems", {})
    arguments.sheets.mkdir(parents=True, exist_ok=True)
    for system in arguments.only:
        subject = SYSTEMS[system][0]
        if subject not in base:
            base[subject] = measure.of(measure.base_pipe, subject)
        file, took = learned(system, arguments.runs)
        pipe = students.load("stickers")
        load_loras(pipe, [Lora(file)])
        sheet = arguments.sheets / f"{system.replace('/', '-')}.jpg"
        figures = measure.of(pipe, subject, sheet)
        figures["old_change_points"] = round(100 * (figures["old"] - base[subject]["old"]), 2)
        figures["strength_0_is_the_base"] = strength_zero_is_the_base(file, measure.base_pipe)
        systems[system] = {**figures, **took}
        out.write_text(json.dumps(report, indent=2) + "\n")
        print(system, systems[system], flush=True)


if __name__ == "__main__":
    main()
