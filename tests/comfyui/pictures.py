"""Makes the templates' thumbnails and the screenshots in docs, by running them.

    python tests/comfyui/pictures.py            # thumbnails: workflows/*.jpg
    python tests/comfyui/pictures.py --page     # and screenshots: docs/comfyui/*.png

Needs ComfyUI (see place.py); screenshots need Chromium, and Playwright in ComfyUI's Python.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from place import BUILT_IN, HERE, ROOT, find
from server import Server, nodes_of, to_prompt

SIDE = 384  # px of a thumbnail
DOCS = ROOT / "docs" / "comfyui"


def thumbnails(server: Server) -> None:
    """The last pictures that a template makes, side by side where there are several."""
    info = server.get("/object_info")
    for path in sorted((ROOT / "workflows").glob("*.json")):
        prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
        for loader in nodes_of(prompt, "TiUELoadStudent"):
            loader["student"] = chosen(path.stem)
        for loader in nodes_of(prompt, "LoraLoader"):
            loader["strength_model"] = loader["strength_clip"] = 0.1  # a random LoRA
        run = server.run(prompt)
        assert run.status == "success", run.messages
        pictures = [opened(server.view(image)) for image in run.images]
        square = [picture for picture in pictures if picture.width == picture.height]
        sheet(square[-4:] if path.stem == "text-to-image" else square[-1:]).save(
            path.with_suffix(".jpg"), quality=88
        )
        print(path.with_suffix(".jpg").relative_to(ROOT))


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def sheet(pictures: list[Image.Image]) -> Image.Image:
    columns = 2 if len(pictures) > 1 else 1
    side = SIDE // columns
    page = Image.new("RGB", (SIDE, SIDE), "white")
    for i, picture in enumerate(pictures):
        place = (i % columns * side, i // columns * side)
        page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    return page


def screenshots(server: Server) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    settings = {
        "TIUE_SERVER": server.url,
        "TIUE_CHROMIUM": os.environ.get("CHROMIUM") or shutil.which("chromium") or "",
        "TIUE_STUDENT": chosen("text-to-image"),
        "TIUE_SCREENSHOTS": str(DOCS),
    }
    command = [server.comfy.python, "-m", "pytest", "-q", "--override-ini", "addopts="]
    command += ["-p", "no:cacheprovider", "--confcutdir", ".", "check_page.py", "-k", "template"]
    environment = {**server.comfy.environment, **settings}
    subprocess.run(command, env=environment, cwd=HERE / "page", check=True)


def chosen(template: str) -> str:
    if template == "controlnet":
        return "tiue/wide"  # of a shape for which ComfyUI loads a ControlNet
    return "stickers" if BUILT_IN.is_dir() else "tiue/student"


def main() -> None:
    comfy = find()
    if comfy is None:
        sys.exit("no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        server = Server(comfy, base)
        student = BUILT_IN if BUILT_IN.is_dir() else Path(scratch) / "student"
        if not student.is_dir():
            command = [comfy.python, str(HERE / "tiny.py"), str(student)]
            subprocess.run(command, env=comfy.environment, check=True)
        command = [comfy.python, str(HERE / "scratch.py"), str(base / "models"), str(student)]
        subprocess.run(command, env=comfy.environment, check=True)
        with server:
            thumbnails(server)
            if "--page" in sys.argv:
                screenshots(server)


if __name__ == "__main__":
    main()
