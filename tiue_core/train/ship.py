"""Make the shipped miniature: ``python -m tiue_core.train.ship RUNS [FIGURES]``.

What RUNS holds of student, decoder, teacher, judge and one-step student is shipped from now on; the
rest stays. Half precision, safetensors; the teacher shares all but its UNet with the student, so
only that is shipped of it, and of the one-step student how it differs from that. FIGURES is what
``tiue evaluate --out`` wrote; the model card quotes it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parents[1] / "stickers"
MOST = 40_000_000  #: bytes of weights; with the graphs less than 60 MB are shipped
PROMPTS = 256  #: of its world, shipped with the student: a LoRA must leave them as they are
#: the autoencoder's runs, the last first
DECODERS = ("autoencoder-narrow-critic", "decoder-critic", "decoder-more", "decoder")
DIGITS = 8  #: of a weight that is shipped, binary ones
#: ends of names of runs that go on from others, the last ones last
MORE = ("-wide", "-wide-on", "-blend", "-drawn", "-drawn-on")


def ship(runs: Path) -> int:
    """Copy what ``runs`` holds into the package; returns the bytes of all weights in it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from ..pipelines.base import TiuePipeline
    from ..stickers.judge import Judge
    from ..stickers.make_graphs import make as make_graphs
    from ..stickers.world import World
    from ..students.low_rank import LOW_RANK
    from ..students.models import load_model

    made = {folder.parent.name: folder for folder in runs.glob("*/result")}
    for end in MORE:
        made |= {name.removesuffix(end): run for name, run in made.items() if name.endswith(end)}
    if not made:
        raise SystemExit(f"{runs} holds no finished run: train first, see the README")
    student = TiuePipeline.from_pretrained(made.get("student", HERE / "student"))
    vae = next((made[name] for name in DECODERS if name in made), None)
    if vae is not None:
        student.vae = load_model(AutoencoderKL, vae)
    for model in (student.unet, student.vae, student.text_encoder):
        shorten(model)
    student.to(torch.float16).save_pretrained(HERE / "student")
    index = HERE / "student" / "model_index.json"  # diffusers notes where it was read from
    said = {k: v for k, v in json.loads(index.read_text()).items() if k != "_name_or_path"}
    index.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    captions = dict.fromkeys(scene.caption for scene in World().scenes(2 * PROMPTS, 31))
    prompts = "\n".join(list(captions)[:PROMPTS]) + "\n"
    (HERE / "student" / "prompts.txt").write_text(prompts, encoding="utf-8")
    if "teacher" in made:
        # transformers 5 writes tokenizer.json alone; ComfyUI and older versions read these two.
        tokenizer = made["teacher"].parent / "tokenizer"
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tokenizer / name, HERE / "student" / "tokenizer" / name)
        unet = load_model(UNet2DConditionModel, made["teacher"] / "unet")
        shorten(unet).half().save_pretrained(HERE / "teacher" / "unet")
    if "judge" in made:
        Judge.load(made["judge"]).save(HERE / "judge")
    if "one-step-low-rank" in made:
        (HERE / "one-step").mkdir(exist_ok=True)
        shutil.copy(made["one-step-low-rank"] / LOW_RANK, HERE / "one-step" / LOW_RANK)
    make_graphs()  # of these weights, or the first picture would be another student's
    size = sum(file.stat().st_size for file in HERE.rglob("*.safetensors"))
    if size > MOST:
        raise SystemExit(f"{size / 1e6:.1f} MB of weights: at most {MOST / 1e6:.0f} MB are shipped")
    return size


@torch.no_grad()
def shorten(model: Any, digits: int = DIGITS) -> Any:
    """Round a model's matrices and kernels to some binary digits, as bfloat16 has 8: a picture
    changes by less than its own steps, and what packs the file finds a seventh of it empty."""
    for weight in model.parameters():
        if weight.ndim > 1:
            mantissa, exponent = torch.frexp(weight.float())
            weight.copy_(torch.ldexp((mantissa * 2**digits).round() / 2**digits, exponent))
    return model


#: Of the one that is shipped; another training wants other words.
ONE_STEP = """\
To compare with, `stickers-one-step` (the system `stickers-swiftbrush`) is shipped too: the same
teacher distilled with K = 1 at t = 999 (SwiftBrush), as a low-rank difference from the teacher's
UNet, 250,000 numbers (`one-step/low-rank.safetensors`). It learned 400 updates where the student
learned 850 and is averaged with one that went on for 1,500 (`recipes/more/9-student.yaml`,
`10-one-step-low-rank.yaml`, `12-student-on.yaml`), so this table does not say which of the two ways
is better; docs/study.md does."""

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# stickers

A miniature one-pass student: 128 px, {kinds} kinds of thing on {backgrounds} backgrounds, painted
in one pass (encoder once, decoder for K = 4 timesteps at once). It was distilled, by prompts alone,
from a teacher that learned from scenes drawn with the Noto Color Emoji font (OFL 1.1); then such
scenes taught it further, one for every noise (`stickers/posed.py`). Both, the autoencoder, the text
encoder and the judge below were made by `tiue distill` from the recipes in
`tiue_core/stickers/recipes`, on two CPU cores.

Things: {kind_names}.
Backgrounds: {background_names}.

## What it measured

{table}

{teacher}{count} fresh prompts of one thing
each (two things: {pairs}); FID and the four others (k = 5) are taken between the judge's features
of the pictures and of {count} freshly drawn scenes, so they compare systems in this table and
nothing else. A thing is right if the judge finds it there and the likeliest of all; *matcher*, fit
and edges come from a ruler that learned nothing (docs/miniature.md). All paint through the same
autoencoder.

{one_step}

Made by: `{command}`
"""


def card(figures: dict, command: str) -> str:
    """The model card, with the figures of ``tiue evaluate``."""
    from ..evaluate.stickers_table import table
    from ..stickers.world import World

    world = World(**figures["world"])
    return CARD.format(
        **figures["world"],
        kind_names=", ".join(world.kind_names),
        background_names=", ".join(world.background_names),
        table=table(figures),
        teacher=_teacher(figures.get("guidance")),
        count=figures["count"],
        pairs=min(figures["count"], 128),
        command=command,
        one_step=ONE_STEP,
    )


def _teacher(guidance: dict | None) -> str:
    """How the teacher ran, where it was measured."""
    if guidance is None:
        return ""
    scales = ", ".join(guidance["sweep"])
    return f"The teacher runs 50 DDIM steps at guidance {guidance['best']}, its best of {scales}. "


def insert(readme: Path, text: str) -> None:
    """Put ``text`` between the README's figure marks."""
    before, mark, rest = readme.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- /figures -->")
    readme.write_text(f"{before}{mark}{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1])) / 1e6:.2f} MB")
    if len(sys.argv) > 2:
        from ..evaluate.stickers_table import table

        figures = json.loads(Path(sys.argv[2]).read_text())
        teacher = "" if "guidance" in figures else "--teacher none "
        command = f"tiue evaluate stickers stickers-one-step {teacher}--count {figures['count']}"
        (HERE / "student" / "README.md").write_text(card(figures, command), encoding="utf-8")
        insert(HERE.parent.parent / "README.md", table(figures))
