"""Prompt embeddings: from the text encoder, or from a folder that holds them all.

The folder is made once, a file for every thousand prompts in half precision, each written whole or
not at all; processes share the work. With it the text encoder rests in main memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from ..errors import TiueError
from ..io.files import safetensors_of, write_atomically
from ..pipelines.text import embed, token_ids
from .pairs import chunk_file
from .prompts import PromptTokens

logger = logging.getLogger("tiue.train")

CHUNK = 1024  #: prompts a file
BATCH = 32


class Embeds:
    """``embeds(rows)`` -> embeddings (B, L, D) of prompts; ``empty`` (1, L, D) of the empty one."""

    def __init__(
        self, pipeline: Any, tokens: PromptTokens, accelerator: Accelerator, folder: Path | None
    ):
        self.pipeline, self.tokens, self.accelerator = pipeline, tokens, accelerator
        self.folder = folder
        if folder is not None:
            self._fill(folder)

    @torch.no_grad()
    def of(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, L, D)."""
        with self.accelerator.autocast():
            return embed(self.pipeline, tokens)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The empty prompt's and the rows' embeddings, (B, L, D) each, on the device."""
        device = self.accelerator.device
        empty = token_ids(self.pipeline, [""]).expand(len(rows), -1)
        if self.folder is None:
            return self.of(torch.cat([empty, self.tokens[rows]])).to(device).chunk(2)  # type: ignore[return-value]
        wanted = torch.stack([self._read(int(row)) for row in rows]).to(device)
        if not hasattr(self, "_empty"):
            self._empty = self.of(empty[:1]).to(device)
        return self._empty.expand_as(wanted).to(wanted.dtype), wanted

    def _read(self, row: int) -> Tensor:
        assert self.folder is not None
        with safe_open(chunk_file(self.folder, row // CHUNK), "pt") as file:
            return file.get_slice("embeds")[row % CHUNK].float()

    def _fill(self, folder: Path) -> None:
        chunks, prompts = range(-(-len(self.tokens) // CHUNK)), self.tokens.prompts
        about = {"prompts": len(prompts), "hash": _hash(prompts, self.pipeline)}
        index = folder / "embeds.json"
        if index.is_file() and json.loads(index.read_text()) != about:
            raise TiueError(
                f"{folder} holds the embeddings of other prompts or of another text encoder: give "
                "`embeddings` another folder."
            )
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            index.write_text(json.dumps(about))
        self.accelerator.wait_for_everyone()
        for chunk in chunks[self.accelerator.process_index :: self.accelerator.num_processes]:
            if chunk_file(folder, chunk).is_file():
                continue
            rows = torch.arange(chunk * CHUNK, min(len(prompts), (chunk + 1) * CHUNK))
            parts = [self.of(self.tokens[part]).half().cpu() for part in rows.split(BATCH)]
            made = safetensors_of({"embeds": torch.cat(parts)}, {})
            write_atomically(chunk_file(folder, chunk), made)
            logger.info("prompt embeddings: %d of %d", int(rows[-1]) + 1, len(prompts))
        self.accelerator.wait_for_everyone()


def _hash(prompts: list[str], pipeline: Any) -> str:
    """Of the prompts in their order, and of a few of the text encoders' weights."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.encode() + b"\n")
    encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    for parameter in (p for e in encoders if e is not None for p in e.parameters()):
        digest.update(parameter.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()
