"""What is painted and what it is held against: prompts, and a reference set."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..baselines.find import pictures
from ..errors import TiueError

PROMPT_SEED = 900_001  #: scenes whose captions are the prompts; no training run uses these seeds
WORLD_SEED = 900_002  #: scenes the pictures are held against
TEMPLATES = {
    "afhq": {"cat": "a photo of cat", "dog": "a photo of dog", "wild": "a photo of wild animal"},
    "celeba-hq": {"man": "a photo of man", "woman": "a photo of woman"},
}
COUNTS = {"drawbench": 200, "partiprompts": 1632}
HUB = {"drawbench": "Jialuo21/DrawBench", "partiprompts": "nateraw/parti-prompts"}
COCO = {"coco2014-30k": ("val2014", 30_000), "coco2017-5k": ("val2017", 5_000)}
NAMES = ("stickers", *COCO, *COUNTS, *TEMPLATES)
_COLUMNS = ("prompt", "prompts", "caption", "text")


@dataclass(frozen=True)
class DataSet:
    """Prompts, and what the pictures are held against.

    Args:
        reference: a folder's pictures; a system's name, whose own samples serve; None: none.
        scenes: of the stickers world, where the prompts are captions of such.
        paper: the data set's name in the columns of the paper's tables.
        whole: how many prompts the data set has; fewer than that is told.
    """

    name: str
    prompts: tuple[str, ...]
    about: str
    reference: tuple[Path, ...] = ()
    teacher: str | None = None
    scenes: tuple[Any, ...] = ()
    draw: Callable[[Path], list[Path]] | None = None  # makes the reference's pictures
    paper: str = ""
    whole: int = 0

    def fingerprint(self) -> str:
        """Of the prompts: two runs with the same are the same run."""
        return hashlib.sha256(json.dumps([self.name, self.prompts]).encode()).hexdigest()[:16]


def data_set(
    name: str,
    *,
    count: int | None = None,
    folder: Path | None = None,
    prompts: Path | None = None,
    reference: str | None = None,
) -> DataSet:
    """One of `NAMES`, or a list of your own.

    Args:
        name: of `NAMES`, or a list's path (txt, csv, tsv, json, jsonl).
        count: so many prompts; by default all, of "stickers" 512, of templates 1,000 each.
        folder: where the data set lies (COCO's, AFHQ's, CelebA-HQ's own layout).
        prompts: the list, where it is not made from `folder`.
        reference: a folder of pictures, or a system whose samples serve; for DrawBench and
            PartiPrompts Stable Diffusion 2.1's at guidance 7.5, as in the paper.

    Raises:
        TiueError: there is no such data set, or a file is missing or not what it should be.
    """
    if name == "stickers":
        return _stickers(count or 512, reference)
    if name in COCO:
        found = _coco(name, count, folder, prompts)
    elif name in TEMPLATES:
        found = _templates(name, count, folder)
    elif name in COUNTS:
        if prompts is None:
            raise TiueError(
                f"{name} needs its list: give --prompts FILE (hub data set {HUB[name]})"
            )
        texts = read_prompts(prompts)
        if len(texts) != COUNTS[name]:
            raise TiueError(
                f"{prompts} has {len(texts)} prompts, {name} has {COUNTS[name]}: give the whole "
                "list (--count takes fewer of it), or give it as a list of your own"
            )
        column = {"drawbench": "drawbench", "partiprompts": "parti"}[name]
        about = f"{name}, {len(texts)} prompts"
        found = DataSet(name, tuple(texts), about, teacher="sd2.1", paper=column, whole=len(texts))
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise TiueError(f"no data set '{name}': give {', '.join(NAMES)}, or a list's path")
        texts = read_prompts(path)
        found = DataSet(path.stem, tuple(texts), f"{path.name}, {len(texts)} prompts")
    return _cut(_with_reference(found, reference), count)


def _with_reference(data: DataSet, reference: str | None) -> DataSet:
    from dataclasses import replace

    if reference is None:
        return data
    path = Path(reference).expanduser()
    if path.is_dir() and not (path / "model_index.json").is_file():
        return replace(data, reference=tuple(pictures(path)), teacher=None, draw=None)
    return replace(data, reference=(), teacher=reference, draw=None)


def _cut(data: DataSet, count: int | None) -> DataSet:
    from dataclasses import replace

    if count is None or data.name in TEMPLATES or count >= len(data.prompts):
        return data
    # An even cut, so that what a list groups (categories, classes) stays in proportion.
    chosen = [data.prompts[i * len(data.prompts) // count] for i in range(count)]
    return replace(data, prompts=tuple(chosen))


def _stickers(count: int, reference: str | None) -> DataSet:
    from ..stickers.judge import Judge
    from ..stickers.world import World

    settings = Judge.load().settings
    world = World(settings["kinds"], settings["backgrounds"], pairs=0)
    scenes = world.scenes(count, PROMPT_SEED)

    def draw(folder: Path) -> list[Path]:
        return draw_scenes(world, count, folder)

    data = DataSet(
        "stickers",
        tuple(scene.caption for scene in scenes),
        f"{count} fresh prompts of one thing each, held against {count} freshly drawn scenes",
        scenes=tuple(scenes),
        draw=draw,
        whole=count,
    )
    return _with_reference(data, reference)


def draw_scenes(world: Any, count: int, folder: Path) -> list[Path]:
    """Scenes of seeds that no run trains on, as PNGs; those that are there are left."""
    from ..io.files import write_atomically
    from ..io.images import encode_png

    paths = [folder / f"{index:05d}.png" for index in range(count)]
    for path, scene in zip(paths, world.scenes(count, WORLD_SEED), strict=True):
        if not path.is_file():
            image = scene.render()
            size = {"width": image.width, "height": image.height}
            record = {"prompt": scene.caption, "seed": WORLD_SEED, "student": "drawn", **size}
            write_atomically(path, encode_png(image, record))
    return paths


def _coco(name: str, count: int | None, folder: Path | None, prompts: Path | None) -> DataSet:
    split, whole = COCO[name]
    if folder is None:
        raise TiueError(
            f"{name} needs COCO: give --data-dir FOLDER that holds {split}/ and "
            f"annotations/captions_{split}.json"
        )
    photos = tuple(pictures(folder / split))
    if prompts is not None:
        texts = read_prompts(prompts)
    else:
        texts = coco_captions(folder / "annotations" / f"captions_{split}.json", whole)
    column = "2014" if split == "val2014" else "2017"
    about = f"COCO {split}, {len(texts)} captions, held against {len(photos)} photos"
    return DataSet(name, tuple(texts), about, photos, paper=column, whole=whole)


def coco_captions(file: Path, count: int, seed: int = 0) -> list[str]:
    """One random caption of ``count`` random pictures, the same for the same seed.

    Which 30,000 the paper drew it does not say; --prompts takes a fixed list, such as the one that
    SwiftBrush v2 used.
    """
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        captions: dict[int, list[tuple[int, str]]] = {}
        for note in notes:
            captions.setdefault(note["image_id"], []).append((note["id"], note["caption"]))
    except FileNotFoundError:
        raise TiueError(f"{file} is missing: put COCO's captions there") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TiueError(f"{file} is not COCO's captions: download it again") from error
    if len(captions) < count:
        raise TiueError(f"{file} has captions of {len(captions)} pictures, {count} are needed")
    draw = random.Random(seed)
    chosen = sorted(draw.sample(sorted(captions), count))
    return [" ".join(draw.choice(sorted(captions[image]))[1].split()) for image in chosen]


def _templates(name: str, count: int | None, folder: Path | None) -> DataSet:
    """A prompt a class; neither the number of pictures nor the split is stated in the paper."""
    texts = TEMPLATES[name]
    each = -(-(count or 1000 * len(texts)) // len(texts))
    prompts = [text for text in texts.values() for _ in range(each)]
    photos: list[Path] = []
    if folder is not None:
        for label in texts:
            inside = folder / label
            if not inside.is_dir():
                raise TiueError(f"{inside} is missing: {name} is a folder of {', '.join(texts)}")
            photos += pictures(inside)
    about = f"{name}, {each} pictures of each of {len(texts)} prompts"
    column = {"afhq": "afhq", "celeba-hq": "celeba"}[name]
    return DataSet(name, tuple(prompts), about, tuple(photos), paper=column, whole=len(prompts))


# --- lists ---------------------------------------------------------------------------------


def read_prompts(file: Path) -> list[str]:
    """Prompts word for word: a line each (txt), or the column "prompt" (csv, tsv, json, jsonl).

    Unlike `tiue batch` it expands nothing: {a|b} in a benchmark's prompt means itself.

    Raises:
        TiueError: the file cannot be read, or holds no prompts.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TiueError(f"{file} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TiueError(f"{file} cannot be read as UTF-8 text: save it as such") from error
    kind = file.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            rows: list[Any] = list(
                csv.DictReader(io.StringIO(text), delimiter="\t" if kind == ".tsv" else ",")
            )
        elif kind == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif kind == ".json":
            rows = json.loads(text)
        else:
            rows = [line for line in text.splitlines() if line.strip()]
        found = [" ".join(_prompt(row).split()) for row in rows]
    except (ValueError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise TiueError(
            f"{file} has no column 'prompt' that can be read: give one text a line, or that column"
        ) from error
    if not found:
        raise TiueError(f"{file} holds no prompts: give one text a line")
    return found


def _prompt(row: Any) -> str:
    if isinstance(row, str):
        return row
    for name, value in row.items():
        if isinstance(name, str) and name.strip().lower() in _COLUMNS:
            return value
    raise KeyError("prompt")
