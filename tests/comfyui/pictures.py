"""Makes the templates' thumbnails and the screenshots in docs, by running them.

    python tests/comfyui/pictures.py            # thumbnails: workflows/*.jpg
    python tests/comfyui/pictures.py --page     # and screenshots: docs/comfyui/*.jpg

A small ControlNet is trained for the student first (edges.py; minutes), or give one that was:
--controlnet FILE. The template `train-lora` learns a dozen owls with its own settings (minutes),
and `lora` shows that LoRA; --lora FILE is one that did already, as benchmarks/lora.py makes it.
Needs ComfyUI (see place.py) and the world's font; screenshots need Chromium, and Playwright in
ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from place import BUILT_IN, HERE, ROOT, Comfy, find
from server import Prompt, Server, nodes_of, to_prompt

from tiue_core.stickers.world import World

SIDE = 384  # px of a thumbnail
DOCS = ROOT / "docs" / "comfyui"
OWL = "a zorb on a purple background"


def thumbnails(server: Server, names: list[str], trained: bool) -> None:
    """The last pictures that a template makes, side by side where there are several."""
    info = server.get("/object_info")
    for name in sorted(names, key=lambda name: name != "train-lora"):
        path = ROOT / "workflows" / f"{name}.json"
        prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
        for text in nodes_of(prompt, "CLIPTextEncode") if path.stem == "lora" else ():
            text["text"] = OWL  # in place of an example that needs no LoRA
        if trained:
            learned(prompt)
        run = server.run(prompt)
        assert run.status == "success", run.messages
        pictures = [opened(server.view(image)) for image in run.images]
        square = [picture for picture in pictures if picture.width == picture.height]
        if path.stem == "controlnet":
            thumbnail = inset(square[-1], square[-2])
        else:
            thumbnail = sheet(square[-4:] if path.stem == "text-to-image" else square[-1:])
        if name == "train-lora" and not trained:
            (file,) = (server.base / "output" / "loras").glob("*.safetensors")
            shutil.copyfile(file, server.base / "models" / "loras" / "your-lora.safetensors")
        thumbnail.save(path.with_suffix(".jpg"), quality=88)
        print(path.with_suffix(".jpg").relative_to(ROOT))


def learned(prompt: Prompt) -> None:
    """What a template would train is here: the stock loader takes it from its file."""
    for key, node in list(prompt.items()):
        if node["class_type"] == "LoraModelLoader":
            node["class_type"] = "LoraLoaderModelOnly"
            node["inputs"] |= {"lora_name": "your-lora.safetensors"}
            del node["inputs"]["lora"]
        elif node["class_type"] in ("TiUETrainLora", "LossGraphNode"):
            del prompt[key]


def owls(folder: Path) -> None:
    """In place of what is there: a dozen pictures of something that the student never saw."""
    shutil.rmtree(folder)
    folder.mkdir()
    for number, scene in enumerate(World(kinds=0, more=("owl",), pairs=0).scenes(12, 77)):
        scene.render().save(folder / f"{number:02d}.png")
        words = scene.caption.replace("an owl", "a zorb")
        (folder / f"{number:02d}.txt").write_text(words, encoding="utf-8")


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


def inset(picture: Image.Image, small: Image.Image) -> Image.Image:
    """A picture with another one in its corner."""
    page = sheet([picture])
    page.paste(small.resize((SIDE // 3, SIDE // 3)), (0, 0))
    return page


def screenshots(comfy: Comfy, server: Server) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    settings = {
        "TIUE_SERVER": server.url,
        "TIUE_CHROMIUM": os.environ.get("CHROMIUM") or shutil.which("chromium") or "",
        "TIUE_SCREENSHOTS": str(DOCS),
    }
    command = [comfy.python, "-m", "pytest", "-q", "--override-ini", "addopts="]
    command += ["-p", "no:cacheprovider", "--confcutdir", ".", "check_page.py", "-k", "template"]
    environment = {**comfy.environment, **settings}
    subprocess.run(command, env=environment, cwd=HERE / "page", check=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--page", action="store_true", help="screenshots as well")
    arguments.add_argument("--controlnet", type=Path, help="a trained one of edges.py")
    arguments.add_argument("--lora", type=Path, help="a LoRA of owls, in place of training one")
    names = [path.stem for path in (ROOT / "workflows").glob("*.json")]
    arguments.add_argument("--only", nargs="*", choices=names, default=names, metavar="TEMPLATE")
    given = arguments.parse_args()
    comfy = find()
    if comfy is None:
        sys.exit("no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI")

    def run(script: str, *rest: Path) -> None:
        command = [comfy.python, str(HERE / script), *map(str, rest)]
        subprocess.run(command, env=comfy.environment, check=True)

    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        server = Server(comfy, base)
        run("scratch.py", base / "models", BUILT_IN)
        owls(base / "input" / "your-pictures")
        controlnet = base / "models" / "controlnet" / "your-controlnet.safetensors"
        if given.lora:
            shutil.copyfile(given.lora, base / "models" / "loras" / "your-lora.safetensors")
        if given.controlnet:
            shutil.copyfile(given.controlnet, controlnet)
        elif "controlnet" in given.only:
            run("edges.py", BUILT_IN, controlnet)
        with server:
            thumbnails(server, given.only, bool(given.lora))
            if given.page:
                shutil.rmtree(base / "output")  # a prompt list that is done has nothing to show
                screenshots(comfy, server)


if __name__ == "__main__":
    main()
