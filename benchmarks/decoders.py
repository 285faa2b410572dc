"""How near the fast decoders come to the exact ones: PSNR of the decoded pictures.

    python benchmarks/decoders.py                          # stickers, 256 prompts
    python benchmarks/decoders.py FOLDER --prompts 64

Prompts are captions of the miniature's world, seeds count from 0. PSNR of pixels in [0, 1], over
each picture; the mean is of all pictures' squared errors together.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path


def captions(count: int) -> list[str]:
    """Things and backgrounds in turn, as many as there are combinations, then again."""
    things = ("cat", "gift", "boat", "star", "fox", "apple", "house", "moon", "tree", "bird")
    colours = ("blue", "red", "green", "pink", "yellow", "white", "black", "orange")
    every = [f"a {thing} on a {colour} background" for thing, colour in product(things, colours)]
    return [every[i % len(every)] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", nargs="?", default="stickers")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()

    from tiue_core import TiuePipeline

    pipe = TiuePipeline.from_pretrained(arguments.student)
    errors: list[float] = []
    for first in range(0, arguments.prompts, arguments.batch_size):
        part = range(first, min(first + arguments.batch_size, arguments.prompts))
        prompts = captions(part.stop)[first:]
        exact, fast = (
            pipe(prompts, seed=list(part), decoders=which, output_type="pt",
                 batch_size=arguments.batch_size).images
            for which in ("exact", "fast")
        )  # fmt: skip
        errors += (exact - fast).square().flatten(1).mean(1).tolist()
    figures = {
        "student": arguments.student,
        "prompts": arguments.prompts,
        "exact": pipe.schedule().timesteps.tolist(),
        "fast": pipe.schedule(decoders="fast").timesteps.tolist(),
        "psnr": _psnr(sum(errors) / len(errors)),
        "psnr_worst": _psnr(max(errors)),
        "psnr_best": _psnr(min(errors)),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _psnr(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)


if __name__ == "__main__":
    main()
