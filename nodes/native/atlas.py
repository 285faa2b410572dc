"""Pages for the Feature Atlas: what the encoder found, and what every decoder adds to the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .paint import Decoded, Encoded

TILE = 160  # px
_GAP, _LABEL = 10, 20
_PAPER, _INK = (18, 18, 20), (225, 225, 225)

Picture = tuple[str, Image.Image]  # its label, and itself


def encoder_page(encoded: Encoded, image: int) -> Tensor:
    """The noise, every skip feature from the first block down, and the middle: (1, H, W, 3)."""
    image = _checked(image, len(encoded.noise))
    maps = [("noise", encoded.noise)]
    maps += [(f"skip {i}", skip) for i, skip in enumerate(encoded.features.skips)]
    maps += [("middle", encoded.features.mid)]
    tiles: list[tuple[str, Image.Image] | None] = []
    for name, feature in maps:
        _, channels, height, width = feature.shape
        tiles.append((f"{name}: {channels} of {height}x{width}", false_colours(feature[image])))
    return _page([tiles[i : i + 4] for i in range(0, len(tiles), 4)])


def decoder_page(decoded: Decoded | None, vae: Any, image: int) -> Tensor:
    """A row per decoder: its prediction, its share E_t eps_t, the sum so far: (1, H, W, 3)."""
    if decoded is None:
        return torch.zeros(1, TILE, TILE, 3)
    image = _checked(image, len(decoded.encoded.noise))
    schedule, predictions = decoded.schedule, decoded.stacked()[:, image]  # (K, C, H, W)
    noise = decoded.encoded.noise[image]
    shares = schedule.weights.float().view(-1, 1, 1, 1) * predictions
    sums = schedule.signal * noise + shares.cumsum(0)
    shown = _shown(torch.cat([(schedule.signal * noise)[None], sums]), vae, decoded)

    strongest = shares.abs().amax().item()
    begin = f"the sum: S = {schedule.signal:.3f}"
    rows = [[("noise", false_colours(noise)), None, (begin, shown[0])]]
    for i, (t, weight) in enumerate(zip(decoded.timesteps, schedule.weights, strict=True)):
        rows.append(
            [
                (f"t = {t}: prediction", false_colours(predictions[i])),
                (f"its share, E = {weight.item():.4f}", _signed(shares[i], strongest)),
                ("the sum so far", shown[i + 1]),
            ]
        )
    return _page(rows)


def false_colours(feature: Tensor) -> Image.Image:
    """(C, H, W) in the three directions in which it varies most, as red, green and blue."""
    height, width = feature.shape[1:]
    pixels = feature.float().flatten(1).T
    pixels = pixels - pixels.mean(0)  # (H * W, C)
    _, _, directions = torch.linalg.svd(pixels, full_matrices=False)
    directions = directions[:3]
    # The sign of a direction is arbitrary: let its strongest channel count as positive.
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    colours = pixels @ (directions * strongest.sign()).T
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    return _picture(colours.view(height, width, 3), Image.Resampling.NEAREST)


def _signed(share: Tensor, strongest: float) -> Image.Image:
    """Three channels of a share around grey, all on one scale, so that small shares look it."""
    rgb = 0.5 + 0.5 * share[:3].movedim(0, -1) / max(strongest, 1e-6)
    return _picture(rgb.clamp(0, 1), Image.Resampling.NEAREST)


def _shown(latents: Tensor, vae: Any, decoded: Decoded) -> list[Image.Image]:
    if vae is None:
        return [false_colours(latent) for latent in latents]
    images = vae.decode(decoded.encoded.latent_format.process_out(latents))
    return [_picture(picture, Image.Resampling.LANCZOS) for picture in images]


def _picture(pixels: Tensor, resampling: Image.Resampling) -> Image.Image:
    """(H, W, 3) in [0, 1], its longer side as long as a tile."""
    picture = Image.fromarray((pixels[..., :3].cpu().numpy() * 255).round().astype(np.uint8))
    scale = TILE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), resampling)


def _page(rows: list[list[Picture | None]]) -> Tensor:
    columns = max(map(len, rows))
    cell = (TILE + _GAP, TILE + _LABEL + _GAP)
    size = (columns * cell[0] + _GAP, len(rows) * cell[1] + _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for y, row in enumerate(rows):
        for x, shown in enumerate(row):
            if shown is None:
                continue
            label, picture = shown
            corner = (_GAP + x * cell[0], _GAP + y * cell[1])
            draw.text(corner, label, fill=_INK, font=font)
            page.paste(picture, (corner[0], corner[1] + _LABEL))
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]


def _checked(image: int, count: int) -> int:
    if image >= count:
        raise ValueError(f"image is {image}, the batch has {count}: give 0 to {count - 1}")
    return image
