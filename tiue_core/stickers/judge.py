"""The judge: a small classifier that says which things a picture shows and on which background.

It learns from rendered scenes, and from the same spoiled (``train/spoil.py``), in which it is to
find nothing; it never sees a generated picture. Its pooled features stand
in for Inception's where Inception cannot be had (FID, precision, recall, density, coverage).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .world import World

HERE = Path(__file__).parent


class Judge(nn.Module):
    """Strided convolutions, mean and maximum pooling, two linear heads."""

    def __init__(self, kinds: int, backgrounds: int, channels: tuple[int, ...]):
        super().__init__()
        self.settings: dict[str, Any] = {
            "kinds": kinds,
            "backgrounds": backgrounds,
            "channels": list(channels),
        }
        widths = (3, *channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            )
            for before, after in pairwise(widths)
        )
        self.things = nn.Linear(2 * channels[-1], kinds)
        self.background = nn.Linear(2 * channels[-1], backgrounds)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, 2C), from 64 px whatever the size."""
        hidden = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        for block in self.blocks:
            hidden = block(hidden)
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the things (multi-label) and of the background (one of)."""
        features = self.features(images)
        return self.things(features), self.background(features)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().half().contiguous() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "judge.safetensors")
        (folder / "config.json").write_text(json.dumps(self.settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | None = None) -> Judge:
        """The shipped judge, or one saved elsewhere."""
        folder = folder or HERE / "judge"
        settings = json.loads((folder / "config.json").read_text())
        judge = cls(settings["kinds"], settings["backgrounds"], tuple(settings["channels"]))
        tensors = load_file(folder / "judge.safetensors")
        judge.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return judge.eval().requires_grad_(False)


def labels(world: World, scenes: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of scenes: things (N, kinds) of 0 and 1, background (N,) index."""
    kinds = {name: index for index, name in enumerate(world.kind_names)}
    backgrounds = {name: index for index, name in enumerate(world.background_names)}
    things = torch.zeros(len(scenes), len(kinds))
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            things[row, kinds[thing.kind]] = 1
    return things, torch.tensor([backgrounds[scene.background] for scene in scenes])


def right(
    logits: tuple[torch.Tensor, torch.Tensor], targets: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per picture: are the asked things there and the likeliest, is the background.

    A thing is there where its probability is above one half: the judge learned to find none in a
    smudge, and then the likeliest is nothing. Returns two boolean tensors (N,).
    """
    (things, background), (wanted, wanted_background) = logits, targets
    asked = wanted.sum(1).long()
    ranks = things.argsort(1, descending=True).argsort(1)  # rank of every kind, 0 = likeliest
    found = (ranks < asked[:, None]) & (things > 0)
    hits = (found & (wanted > 0)).sum(1) == asked
    return hits, background.argmax(1) == wanted_background
