"""Where a student was found, and what decides its pictures."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.files import content_hash
from .folder import models_of, read_json, weights


@dataclass(frozen=True)
class Source:
    """Where a student was found: a diffusers folder or a single file, on this machine."""

    name: str
    path: Path
    revision: str | None = None
    unet: Path | None = None  # a UNet folder that stands in for the one in `path`
    adapter: Path | None = None  # matrices that are added to that UNet's weights
    timesteps: tuple[int, ...] | None = None  # that stand in for the folder's own

    def content_hash(self) -> str:
        """SHA-256 over all weights, the scheduler's config, and of the other configs what decides
        the picture: sizes, scaling factors, the student's own timesteps."""
        if self.path.is_file():
            return content_hash([self.path])
        homes = dict.fromkeys(models_of(self.path), self.path)
        if self.unet is not None:
            homes["unet"] = self.unet.parent
        files = [path for name, home in homes.items() for path in weights(home / name)]
        files += [self.adapter] if self.adapter else []
        hashed = content_hash([*files, self.path / "scheduler" / "scheduler_config.json"])
        configs: dict[str, Any] = {
            name: _deciding(home / name / "config.json") for name, home in homes.items()
        }
        index = read_json(self.path / "model_index.json", "copy the folder again")
        configs["own"] = {key: index.get(key) for key in ("steps", "timesteps")}
        configs["given"] = list(self.timesteps or ())
        text = hashed + json.dumps(configs, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def options(self, dtype: Any = None) -> dict[str, Any]:
        """What `TiuePipeline` is to be given beside the folder."""
        options: dict[str, Any] = {}
        if self.unet is not None:
            from .models import load_unet  # torch

            options["unet"] = load_unet(self.unet, dtype, self.adapter)
        if self.timesteps is not None:
            options["timesteps"] = list(self.timesteps)
        return options


def _deciding(config: Path) -> dict[str, Any]:
    """A config without what says only who wrote it, and in which release."""
    idle = ("transformers_version", "torch_dtype", "dtype", "architectures")
    content = read_json(config, "copy the folder again")
    return {k: v for k, v in content.items() if not k.startswith("_") and k not in idle}
