"""Fixtures shared by all tests, made of the small models of ``small.py``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["TIUE_CACHE"] = tempfile.mkdtemp(prefix="tiue-")  # nothing of the user's, nor left there
os.environ["TIUE_BACKGROUND"] = "0"
from diffusers import DDIMScheduler
from small import SD_SCHEDULER, small_text_encoder, small_tokenizer, small_unet, small_vae


@pytest.fixture(scope="session")
def playwright_driver() -> Iterator[Any]:
    """Playwright, once for all: its synchronous interface does not start twice in a process."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        yield driver


@pytest.fixture
def components(tmp_path: Path) -> dict[str, Any]:
    """Random components of a small student, the same in every test."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer(tmp_path)
    return {
        "vae": small_vae(),
        "text_encoder": small_text_encoder(len(tokenizer)),
        "tokenizer": tokenizer,
        "unet": small_unet(),
        "scheduler": DDIMScheduler(**SD_SCHEDULER),
    }


@pytest.fixture
def pipe(components: dict[str, Any]) -> Any:
    from tiue_core import TiuePipeline

    return TiuePipeline(**components)


@pytest.fixture
def authors_folder(tmp_path: Path, components: dict[str, Any]) -> Callable[[Any], Path]:
    """Write a folder as StableDiffusionPipeline does, with ``safety_checker`` as given."""
    from diffusers import StableDiffusionPipeline

    def write(safety_checker: Any = (None, None)) -> Path:
        folder = tmp_path / "student"
        StableDiffusionPipeline(
            **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index["safety_checker"] = list(safety_checker)
        index["requires_safety_checker"] = True
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return write
