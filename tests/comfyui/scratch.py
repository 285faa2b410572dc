"""Fills a scratch models folder: a student, a random LoRA and ControlNet for it, other students.

Run in ComfyUI's Python: scratch.py MODELS_FOLDER STUDENT
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import tiny


def fill(models: Path, student: Path) -> None:
    from diffusers import UNet2DConditionModel
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


if __name__ == "__main__":
    fill(Path(sys.argv[1]), Path(sys.argv[2]))
