"""Fills a scratch folder: a student, a random LoRA and ControlNet for it, other students, pictures.

Run in ComfyUI's Python: scratch.py MODELS_FOLDER STUDENT
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import tiny


def fill(models: Path, student: Path) -> None:
    from diffusers import UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextModel

    for folder in ("tiue", "loras", "controlnet"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    (models / "tiue" / "student").symlink_to(student, target_is_directory=True)
    parts = SimpleNamespace(
        unet=UNet2DConditionModel.from_pretrained(student, subfolder="unet"),
        text_encoder=CLIPTextModel.from_pretrained(student, subfolder="text_encoder"),
    )
    lora = models / "loras" / "your-lora.safetensors"
    tiny.lora(lora, parts.unet, parts.text_encoder)
    tiny.control_lora(models / "controlnet" / "your-controlnet.safetensors", parts.unet)
    tiny.student(models / "tiue" / "other", seed=1)
    tiny.student(models.parent / "elsewhere" / "mine", seed=3)  # as extra_model_paths.yaml says
    tiny.student(models / "tiue" / "inpainting", in_channels=9)
    pictures = models.parent / "input" / "your-pictures"  # to learn from
    pictures.mkdir(parents=True, exist_ok=True)
    for colour in ("red", "yellow", "green"):
        Image.new("RGB", (128, 128), colour).save(pictures / f"{colour}.png")
        (pictures / f"{colour}.txt").write_text(f"a zorb on a {colour} background")


if __name__ == "__main__":
    fill(Path(sys.argv[1]), Path(sys.argv[2]))
