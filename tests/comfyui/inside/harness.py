"""ComfyUI and the pack, imported into this process as ComfyUI itself would import them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny
sys.argv = ["main.py", "--cpu"]

# What is larger than 128 KiB comes from the system and goes back to it when freed (glibc's
# M_MMAP_THRESHOLD), so that a cap on the address space is a cap on what is in use.
CAPPABLE = hasattr(ctypes.CDLL(None), "mallopt") and ctypes.CDLL(None).mallopt(-3, 1 << 17) == 1

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

TOLERANCE = 3e-5  # maximum absolute difference of latents; see Student.difference


def _pack() -> ModuleType:
    name = "tiue_pack"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_pack()
from tiue_pack.nodes import folders  # noqa: E402
from tiue_pack.nodes.native import loading  # noqa: E402
from tiue_pack.tiue_core.pipelines.base import TiuePipeline  # noqa: E402

__all__ = ["CAPPABLE", "TOLERANCE", "Student", "called", "differences", "loading", "tiny", "told"]
folders.register()


differences: dict[str, float] = {}  # what Student.difference found, the greatest of every check
told: list[str] = []  # other figures that the documentation has


class Student:
    """A folder, loaded twice: by the nodes' loader, and as a TiuePipeline. Both in float32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.clip, self.vae = loading.load_folder(folder, dtype=torch.float32)
        self.pipe = TiuePipeline.from_pretrained(folder)
        self.scale = self.model.model.latent_format.scale_factor

    def condition(self, prompt: str, clip: Any = None) -> Any:
        clip = clip or self.clip
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def latent(self, count: int = 1, height: int = 16, width: int = 16) -> dict[str, Any]:
        return {"samples": torch.zeros(count, 4, height, width)}

    def reference(self, prompt: str, seed: int, **options: Any) -> torch.Tensor:
        return self.pipe(prompt, seed=seed, output_type="latent", **options).images

    def distance(self, samples: torch.Tensor, reference: torch.Tensor) -> float:
        """Maximum absolute difference of a LATENT's samples and a z_0."""
        assert samples.shape == reference.shape
        return (samples * self.scale - reference).abs().max().item()

    def difference(self, samples: torch.Tensor, reference: torch.Tensor) -> float:
        """The same, of what ought to be equal and must not be flat.

        A z_0 is a sum whose largest term, S * noise, is about 16 in every student, so float32
        rounds alike whether the sum is as large as that (random weights) or not (trained ones).
        """
        assert reference.std() > 0.1
        found = self.distance(samples, reference)
        check = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
        differences[check] = max(found, differences.get(check, 0.0))
        return found


def called(node: Any) -> Any:
    def call(*args: Any, **inputs: Any) -> Any:
        result = node.execute(*args, **inputs).result
        return result[0] if len(result) == 1 else result

    return call
