"""A student's graph in onnxruntime. Needs numpy, tokenizers, Pillow and onnxruntime, no torch."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TiueError
from . import metadata
from .noise import draw_noise

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Devices in the order in which they are preferred."""


class Graph:
    """One file that paints.

    Args:
        path: an ``.onnx`` of ``tiue export``.
        device: a key of ``PROVIDERS``; by default the first that is there.

    Raises:
        TiueError: no such file, not a graph of ours, data missing beside it, or no such device.
    """

    def __init__(self, path: Path, device: str | None = None) -> None:
        path = Path(path).expanduser()
        self.session, self.device = open_session(path, device)
        stored = self.session.get_modelmeta().custom_metadata_map
        self.about = metadata.read(path, stored)
        ort, Tokenizer = _libraries()
        self.version = ort.__version__
        self.tokenizer = Tokenizer.from_str(stored[metadata.TOKENIZER])

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        width: int | None = None,
        height: int | None = None,
    ) -> list[Any]:
        """One PIL image for each prompt and its seed.

        Raises:
            TiueError: a size that the graph does not take.
        """
        from PIL import Image

        images, _ = self.run(prompts, seeds, width, height)
        pixels = (images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        return [Image.fromarray(each) for each in pixels]

    def run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        width: int | None = None,
        height: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (B, 3, H, W) in [0, 1] and their latents (B, C, H / factor, W / factor)."""
        sides = metadata.check_size(self.about, width, height)
        shape = (self.about["channels"], *(side // self.about["factor"] for side in sides))
        noise = draw_noise(seeds, shape)
        image, latents = self.session.run(
            ["image", "latents"], {"input_ids": self.tokens(prompts), "noise": noise}
        )
        for row in (*latents, *image):  # broken numbers would be painted black, in silence
            if not (np.isfinite(row).all() and row.min() < row.max()):
                raise TiueError(
                    "what the graph painted is not a picture (NaN, infinity or a single value): "
                    "export it again, from a student that paints"
                )
        return image, latents

    def tokens(self, prompts: Sequence[str]) -> np.ndarray:
        """Texts to token ids (B, N) int64, warning of words that do not fit."""
        ids = []
        for prompt in prompts:
            text = " ".join(prompt.split())
            encoded = self.tokenizer.encode(text)
            if encoded.overflowing:
                start = min(a for a, b in encoded.overflowing[0].offsets if b > a)
                start = text.rfind(" ", 0, start + 1) + 1
                warnings.warn(
                    f"the prompt is longer than the text encoder's {len(encoded.ids)} tokens, "
                    f"these words are dropped: {text[start:]}",
                    stacklevel=2,
                )
            ids.append(encoded.ids)
        return np.array(ids, np.int64)


def open_session(
    path: Path, device: str | None = None, threads: int | None = None
) -> tuple[Any, str]:
    """onnxruntime's session for a graph, and the device that it runs on.

    Args:
        threads: of a CPU; by default as many as ``OMP_NUM_THREADS`` says, as in PyTorch.

    Raises:
        TiueError: see ``Graph``.
    """
    ort, _ = _libraries()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TiueError(f"{path} {what}: give a graph made by `tiue export`")
    device = _device(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well, and told below
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS["cpu"]]))
    try:
        return ort.InferenceSession(str(path), options, providers=providers), device
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise TiueError(_why_not(path, str(error))) from error


def _libraries() -> tuple[Any, Any]:
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TiueError(
            f"{error.name} is not installed: pip install 'tiue[export]' to run graphs"
        ) from None
    return onnxruntime, Tokenizer


def _device(name: str | None, available: Sequence[str]) -> str:
    here = [device for device, provider in PROVIDERS.items() if provider in available]
    if name is None:
        return here[0]
    if name not in here:
        raise TiueError(f"onnxruntime has no device '{name}' here: use {' or '.join(here)}")
    return name


def _why_not(path: Path, reason: str) -> str:
    """onnxruntime's error as one line of ours."""
    named = re.search(r"[^\s\"'\[/\\]+\.onnx\.data", reason)  # whoever renamed the graph
    data = path.with_name(named[0] if named else path.name + ".data")
    if "xternal" in reason and not data.exists():
        return f"{path} keeps its weights in {data.name}, which is not beside it: copy it there"
    if "xternal" in reason or "out of bounds" in reason:
        return f"the weights in {data.name} are not those of {path}: copy both files again"
    if "pset" in reason or "IR_VERSION" in reason or "IR version" in reason:
        return f"{path} is from a newer exporter than this onnxruntime reads: update onnxruntime"
    return f"{path} is not a graph that onnxruntime can read: export it again"
