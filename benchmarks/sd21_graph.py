"""A graph as large as Stable Diffusion 2.1's: exported, painted in onnxruntime, held to PyTorch.

    python benchmarks/sd21_graph.py --folder /tmp/sd21              # 512 px; needs 16 GB
    python benchmarks/sd21_graph.py --folder /tmp/sd21 --size 768

The weights are arbitrary numbers that half precision holds, as those of released students are, so
the file is half as large as the float32 that it computes in. Making the graph and running it are a
process each, whose peak of resident memory is its own. Prints one JSON object, and writes it with
--out; the graph is deleted unless --keep.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
PROMPT, SEED = "a fox in a snowy wood, oil on canvas", 7


def make(folder: Path, size: int) -> dict[str, Any]:
    """Export a random student of Stable Diffusion 2.1's shape, and paint with it in PyTorch."""
    import torch
    from small import small_tokenizer

    from tiue_core import TiuePipeline
    from tiue_core.bench.shapes import models
    from tiue_core.export.write import export

    with TemporaryDirectory() as scratch:
        tokenizer = small_tokenizer(Path(scratch))
    tokenizer.model_max_length = 77
    made = models("sd21")
    pipe = TiuePipeline(made.vae, made.text_encoder, tokenizer, made.unet, made.scheduler)
    with torch.no_grad():
        for model in (pipe.unet, pipe.vae, pipe.text_encoder):
            for tensor in model.parameters():
                tensor.copy_(tensor.half())
    started = time.monotonic()
    sides = {"width": size, "height": size}
    latents = pipe(PROMPT, seed=SEED, output_type="latent", **sides).images
    np.save(folder / "latents.npy", latents.numpy())
    np.save(folder / "image.npy", pipe(PROMPT, seed=SEED, output_type="pt", **sides).images)
    painted = time.monotonic()
    files = export(pipe, folder / "sd21.onnx", record={"student": "random, as SD2.1"}, **sides)
    return {
        "files": {file.name: file.stat().st_size for file in files},
        "export_seconds": time.monotonic() - painted,
        "pytorch_seconds": (painted - started) / 2,
        "export_peak_gb": _peak(),
    }


def run(folder: Path) -> dict[str, Any]:
    """Paint the same picture in onnxruntime, without PyTorch, and compare."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tiue_core.export.runtime import Graph

    started = time.monotonic()
    graph = Graph(folder / "sd21.onnx", "cpu")
    loaded = time.monotonic()
    image, latents = graph.run([PROMPT], [SEED])
    done = time.monotonic()
    wanted, picture = np.load(folder / "latents.npy"), np.load(folder / "image.npy")
    return {
        "load_seconds": loaded - started,
        "onnxruntime_seconds": done - loaded,
        "run_peak_gb": _peak(),
        "latents_apart": float(np.abs(latents - wanted).max()),
        "latents_deviation": float(wanted.std()),
        "pixels_apart": float(255 * np.abs(image - picture).max()),
        "pixels_deviation": float(255 * picture.std()),
        "onnxruntime": graph.version,
    }


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Both, each in a process of its own."""
    figures: dict[str, Any] = {"size": size}
    for stage in ("make", "run"):
        command = [sys.executable, __file__, "--folder", str(folder), "--size", str(size)]
        done = subprocess.run([*command, "--stage", stage], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{stage} ended with {done.returncode}")
        figures |= json.loads(done.stdout.splitlines()[-1])
    return figures


def _peak() -> float:
    """The most this process had in memory, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for 3 GB")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--stage", choices=("make", "run"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.stage:
        figures = make(folder, arguments.size) if arguments.stage == "make" else run(folder)
        print(json.dumps(figures))
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(folder, arguments.size)
    finally:
        if not arguments.keep:
            for file in folder.iterdir():
                if file.name.startswith("sd21.onnx") or file.suffix == ".npy":
                    file.unlink()
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
