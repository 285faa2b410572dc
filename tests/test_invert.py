"""The noise of a given picture: R is what it says, and the search finds what can be checked."""

from __future__ import annotations

import torch

from tiue_core.core.invert import invert, unlike_noise


def test_white_noise_is_like_noise_and_nothing_else_is() -> None:
    white = torch.randn(4, 4, 64, 64, generator=torch.manual_seed(0))
    assert unlike_noise(white).max() < 0.01
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1) * 3  # of unit variance, with neighbours
    for other in (white + 0.5, 2 * white, smooth):
        assert unlike_noise(other).min() > 0.2


def test_the_noise_of_a_map_that_can_be_inverted_exactly() -> None:
    """A rotation of the channels: the noise is the picture, turned back."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    wanted, steps = torch.randn(2, 4, 16, 16), []
    paint = lambda x: torch.einsum("oc,bchw->bohw", turn, x)  # noqa: E731
    found, apart = invert(
        paint, paint(wanted), torch.randn(2, 4, 16, 16), 200, lambda done, _: steps.append(done)
    )
    assert (found - wanted).square().mean().sqrt() < 0.1  # R pulls a little
    assert torch.allclose(apart, (paint(found) - paint(wanted)).square().mean((1, 2, 3)).sqrt())
    assert steps == list(range(1, 201)) and not found.requires_grad
