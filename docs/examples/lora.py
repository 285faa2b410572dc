"""A LoRA from pictures, and a picture with it: `tiue lora` and `--lora` from Python.

    python docs/examples/lora.py IMAGES [--steps N] [--student-steps N] [--out FILE.safetensors]

IMAGES is a folder of a dozen pictures of one thing. It resumes by itself, from `FILE-run`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tiue_core import TiuePipeline
from tiue_core.students.lora import Lora, load_loras
from tiue_core.train.lora.run import train_lora
from tiue_core.train.recipe import LoraRecipe, checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--trigger", default="zorb")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--student-steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("zorb.safetensors"))
    asked = parser.parse_args()
    recipe = checked(LoraRecipe, {**vars(asked), "student": "stickers"})

    def told(done: int, total: int, logs: dict[str, float]) -> None:
        if done % 25 == 0 or done == total:
            print(f"{done}/{total}  loss {logs['loss']:.4g}")

    path = train_lora(recipe, told)
    pipe = TiuePipeline.from_pretrained("stickers")
    load_loras(pipe, [Lora(path, 1.0)])
    image = pipe(f"a {asked.trigger} on a blue background", seed=0).images[0]
    image.save(path.with_suffix(".png"))
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
