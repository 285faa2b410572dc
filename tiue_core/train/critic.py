"""A critic that tells the student's noised latents from the teacher's.

Its eyes are the frozen teacher's own encoder, as in latent adversarial diffusion distillation
(arXiv:2403.12015), so only small heads learn. What it calls real are the teacher's samples for the
same prompts: no image is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core.forward_process import Noising
from .draws import Source
from .vsd import noise_like


class Critic(nn.Module):
    """A head for every feature map: 1x1, SiLU, 3x3, and the prompt's inner product with it."""

    def __init__(self, channels: Sequence[int], prompt_width: int, width: int = 64):
        super().__init__()
        self.enter = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, c, affine=False), nn.Conv2d(c, width, 1), nn.SiLU())
            for c in channels
        )
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU()) for _ in channels
        )
        self.score = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in channels)
        self.prompt = nn.ModuleList(nn.Linear(prompt_width, width) for _ in channels)

    def forward(self, features: Sequence[Tensor], prompt: Tensor) -> list[Tensor]:
        """Feature maps (B, C_i, h_i, w_i) and pooled prompts (B, D) -> scores (B, h_i, w_i)."""
        scores = []
        for f, enter, body, score, words in zip(
            features, self.enter, self.body, self.score, self.prompt, strict=True
        ):
            h = body(enter(f))
            asked = (h * words(prompt)[:, :, None, None]).mean(1)
            scores.append(score(h)[:, 0] + asked)
        return scores


def tell_apart(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The critic's hinge loss, mean over heads: at 0 every score is beyond 1 or -1."""
    losses = [
        torch.relu(1 - r.float()).mean() + torch.relu(1 + f.float()).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def fool(fake: Sequence[Tensor]) -> Tensor:
    """The student's side of it: the mean score, to be raised."""
    return -torch.stack([f.float().mean() for f in fake]).mean()


def both_seen(
    see: Callable[[Tensor, Tensor, Tensor], list[Tensor]],
    noising: Noising,
    fake: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    source: Source,
    levels: tuple[int, int],
) -> tuple[list[Tensor], list[Tensor]]:
    """What the teacher sees in the student's latents and in the real side, both noised alike, so
    details count too.

    Args:
        see: (noised latents, timesteps, prompt_embeds) -> feature maps.
        fake, real: latents (B, C, h, w) and their prompt_embeds (B, N, D).
    """
    timesteps, noise = noise_like(fake[0], source, levels)
    seen = see(noising.add(fake[0], noise, timesteps), timesteps, fake[1])
    with torch.no_grad():
        return seen, see(noising.add(real[0], noise, timesteps), timesteps, real[1])


def criticism(
    critic: nn.Module,
    fake: Sequence[Tensor],
    real: Sequence[Tensor],
    prompt_embeds: Tensor,
    asked: Tensor,
) -> tuple[Tensor, Tensor]:
    """The student's loss and the critic's, of what the teacher sees in both."""
    prompt = prompt_embeds.float().mean(1)
    seen = critic(real, asked.float().mean(1))
    told = tell_apart(seen, critic([f.detach() for f in fake], prompt))
    critic.requires_grad_(False)  # the student's loss must not move it
    fooled = fool(critic(fake, prompt))
    critic.requires_grad_(True)
    return fooled, told
