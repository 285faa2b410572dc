"""A student's graphs, painting: one file, or a folder of its parts. No torch.

Needs numpy, tokenizers, Pillow and an engine (``sessions``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TiueError
from . import metadata
from .noise import draw_noise
from .sessions import ENGINES, OpenVino, need, open_session

__all__ = ["Graph", "GraphSet", "open_session"]


class Graph:
    """One file that paints.

    Args:
        path: an ``.onnx`` or, for OpenVINO, an ``.xml`` of ``tiue export``.
        device: of onnxruntime, a key of ``sessions.PROVIDERS``; by default the first that is there.

    Raises:
        TiueError: no such file, not a graph of ours, data missing beside it, or no such device.
    """

    precision = "float32"

    def __init__(self, path: Path, device: str | None = None) -> None:
        path = Path(path).expanduser()
        self._run: Callable[[dict[str, Any]], Any]
        if path.suffix == ".xml":
            session = OpenVino(path)
            self.engine, self.device, self.version = OpenVino.name, "cpu", OpenVino.version()
            stored, self._run = session.metadata(), session
        else:
            ort, self.device = open_session(path, device)
            self.engine, self.version = "onnxruntime", need("onnxruntime").__version__
            stored = ort.get_modelmeta().custom_metadata_map
            self._run = lambda inputs: ort.run(None, inputs)
        self.about = metadata.read(path, stored)
        self.tokenizer = _tokenizer(stored[metadata.TOKENIZER])

    def facts(self) -> dict[str, str]:
        """What a picture's metadata says of the engine."""
        computed = {} if self.precision == "float32" else {"dtype": self.precision}
        return {**computed, "engine": self.engine, self.engine: self.version}

    def _paint(self, ids: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, N) and noise (B, C, h, w) to pictures in [0, 1] and latents."""
        image, latents = self._run({"input_ids": ids, "noise": noise})
        return image, latents

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
        image, latents = self._paint(self.tokens(prompts), noise)
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


class GraphSet(Graph):
    """A folder of graphs, one for each part of a student, as ``tiue export --parts`` writes it.

    Args:
        folder: holds ``student.json`` and the parts.
        engine: a key of ``sessions.ENGINES``.
        precision: one of the engine's.

    Raises:
        TiueError: the folder is damaged, or the engine is not installed.
    """

    device = "cpu"

    def __init__(
        self, folder: Path, engine: str = "onnxruntime", precision: str = "float32"
    ) -> None:
        self.folder, self.engine, self.precision = folder, engine, precision
        self.about, tokenizer = metadata.read_set(folder)
        self.version = ENGINES[engine].version()
        self.tokenizer = _tokenizer(tokenizer)
        self._parts: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        """A part's session: "text_encoder", "encoder", "decoder" or "vae"; opened once."""
        if name not in self._parts:
            path = self.folder / f"{metadata.SET}.{name}.onnx"
            self._parts[name] = ENGINES[self.engine](path, self.precision)
        return self._parts[name]

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        """Token ids (B, N) to (B, N, D)."""
        return self.part("text_encoder")({"input_ids": ids})[0]

    def encode(self, noise: np.ndarray, prompt_embeds: np.ndarray) -> list[np.ndarray]:
        """Mid and skip features."""
        return self.part("encoder")({"noise": noise, "prompt_embeds": prompt_embeds})

    def decode(
        self, features: Sequence[np.ndarray], noise: np.ndarray, prompt_embeds: np.ndarray
    ) -> np.ndarray:
        """Latents; with noise of zeros, the weighted sum of the predictions."""
        mid, *skips = features
        named = {f"skip_{i}": skip for i, skip in enumerate(skips)}
        inputs = {"mid": mid, **named, "noise": noise, "prompt_embeds": prompt_embeds}
        return self.part("decoder")(inputs)[0]

    def image(self, latents: np.ndarray) -> np.ndarray:
        """Latents to pictures (B, 3, H, W) in [0, 1]."""
        return self.part("vae")({"latents": latents})[0]

    def _paint(self, ids: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embeds = self.encode_text(ids)
        latents = self.decode(self.encode(noise, embeds), noise, embeds)
        return self.image(latents), latents


def _tokenizer(text: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TiueError(
            "tokenizers is not installed: pip install tokenizers to run graphs"
        ) from None
    return Tokenizer.from_str(text)
