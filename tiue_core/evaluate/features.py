"""Pictures to numbers: Inception, CLIP and the miniature's judge, from files on this machine.

An extractor reads pictures from disk, in batches by name, and its answer is kept in the run's
folder under the content of pictures and weights: what was looked at once is not looked at again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TiueError
from ..io.files import content_hash, read_header, write_atomically
from ..students.folder import weights
from ..students.models import load_model, load_tokenizer

BATCH = 32
CLIPS = {
    "clip-b32": ("OpenAI ViT-B/32", "openai/clip-vit-base-patch32"),
    "clip-g14": ("OpenCLIP ViT-g-14, laion2b_s12b_b42k", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
}
PREFIX = "A photo depicts "  #: before every prompt, after GigaGAN's evaluation
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Extractor:
    """Named numbers of pictures.

    Args:
        prepare: a PIL image -> (3, H, W).
        look: (B, 3, H, W) -> numbers by name, each (B, ...).
        digest: of its weights.
        texts: prompts -> (N, D), of CLIP.
    """

    name: str
    about: str
    prepare: Callable[[Any], Tensor]
    look: Callable[[Tensor], dict[str, Tensor]]
    digest: str
    texts: Callable[[Sequence[str]], Tensor] | None = None


# --- pictures ------------------------------------------------------------------------------


def open_picture(path: Path) -> Any:
    """An RGB PIL image.

    Raises:
        TiueError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TiueError(f"{path} cannot be read as a picture: replace it, or remove it") from error


def crop_256(image: Any) -> Any:
    """GigaGAN's protocol: the middle square, Lanczos-resized to 256 px."""
    from PIL import Image

    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side))
    return square.resize((256, 256), Image.Resampling.LANCZOS)


def resize_clean(image: Any, side: int) -> Tensor:
    """clean-fid's "clean" resize: bicubic with antialiasing, each channel in float, (3, s, s)."""
    from PIL import Image

    channels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    bicubic = Image.Resampling.BICUBIC
    small = [np.asarray(Image.fromarray(one).resize((side, side), bicubic)) for one in channels]
    return torch.from_numpy(np.stack(small).clip(0, 255))


def measure(
    extractor: Extractor,
    paths: Sequence[Path],
    kept: Path | None = None,
    *,
    name: str = "the pictures",
    one_size: bool = False,
    advance: Callable[[int], Any] = lambda by: None,
) -> dict[str, Tensor]:
    """The extractor's numbers of pictures, in the order of ``paths``.

    Args:
        kept: the folder where answers are kept.
        one_size: whether all must be of one size, as a system's own are.

    Raises:
        TiueError: a picture cannot be read, or their sizes are mixed.
    """
    from safetensors.torch import load_file, save

    content = content_hash(paths) + extractor.digest
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    file = kept / f"{extractor.name}-{key}.safetensors" if kept is not None else None
    if file is not None and file.is_file():
        try:
            read_header(file)
            advance(len(paths))
            return load_file(file)
        except TiueError:
            pass  # cut off: made again
    size: tuple[int, int] | None = None
    found: list[dict[str, Tensor]] = []
    for first in range(0, len(paths), BATCH):
        images = []
        for path in paths[first : first + BATCH]:
            image = open_picture(path)
            if one_size and size is not None and image.size != size:
                raise TiueError(
                    f"{path} is {image.width} x {image.height}, others of {name} are "
                    f"{size[0]} x {size[1]}: one system's pictures must be of one size"
                )
            size = image.size
            images.append(extractor.prepare(image))
        with torch.no_grad():
            numbers = extractor.look(torch.stack(images))
        found.append({key: value.float().cpu() for key, value in numbers.items()})
        advance(len(images))
    joined = {key: torch.cat([one[key] for one in found]).contiguous() for key in found[0]}
    if file is not None:
        write_atomically(file, save(joined))
    return joined


# --- extractors ----------------------------------------------------------------------------


def judge(folder: Path | None = None, device: str = "cpu") -> Extractor:
    """The miniature's judge: features (B, D), logits of things and of the background."""
    from ..stickers.judge import HERE, Judge

    model = Judge.load(folder).to(device)
    home = folder or HERE / "judge"

    def prepare(image: Any) -> Tensor:
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)

    def look(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        things, background = model(images)
        return {"features": model.features(images), "things": things, "background": background}

    digest = content_hash([home / "judge.safetensors"])
    return Extractor("judge", "the stickers judge", prepare, look, digest)


def inception(file: Path, device: str = "cpu") -> Extractor:
    """FID's Inception v3 after GigaGAN's crop and clean-fid's resize: features (B, 2048)."""
    from .inception import SIDE, Inception

    model = Inception.load(file).to(device)

    def look(images: Tensor) -> dict[str, Tensor]:
        return {"features": model(images.to(device))}

    def prepare(image: Any) -> Tensor:
        return resize_clean(crop_256(image), SIDE)

    return Extractor("inception", "Inception v3 (2015)", prepare, look, content_hash([file]))


def clip(name: str, folder: Path, device: str = "cpu") -> Extractor:
    """CLIP from a transformers folder: unit vectors (B, D) of pictures, and of texts.

    Pictures are brought to 256 px as GigaGAN's script does, then to CLIP's side.
    """
    from PIL import Image
    from transformers import CLIPModel

    about, hub_id = CLIPS[name]
    if not (folder / "config.json").is_file():
        raise TiueError(
            f"{folder} has no CLIP: give the folder of {hub_id} in the layout of transformers"
        )
    files = weights(folder)
    model = load_model(CLIPModel, folder)
    tokenizer = load_tokenizer(folder)
    model = model.eval().to(device)  # type: ignore[arg-type]
    side = model.config.vision_config.image_size
    mean, std = (torch.tensor(one)[:, None, None] for one in (_CLIP_MEAN, _CLIP_STD))

    def prepare(image: Any) -> Tensor:
        small = crop_256(image).resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - mean) / std

    def unit(output: Any, projection: Any) -> Tensor:
        return torch.nn.functional.normalize(projection(output.pooler_output).float(), dim=-1)

    def look(images: Tensor) -> dict[str, Tensor]:
        seen = model.vision_model(pixel_values=images.to(device))
        return {"image": unit(seen, model.visual_projection)}

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        vectors = []
        for first in range(0, len(prompts), BATCH):
            tokens = tokenizer(
                [PREFIX + text for text in prompts[first : first + BATCH]],
                padding=True,
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(device)
            vectors.append(unit(model.text_model(**tokens), model.text_projection).cpu())
        return torch.cat(vectors)

    return Extractor(name, about, prepare, look, content_hash(files), texts)


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) cosines of unit vectors (N, D): CLIPScore is their mean, here without the usual 100."""
    if images.shape != texts.shape:
        raise TiueError(
            f"{len(images)} pictures and {len(texts)} prompts: CLIPScore needs one picture a prompt"
        )
    return (images * texts).sum(-1)
