"""The world of the miniature: captioned scenes drawn with the Noto Color Emoji font.

A scene is one or two named things on a named background, at a random place, size and tilt and
sometimes mirrored. Captions come from templates, so what a picture should show is known exactly
and a machine can check it. Several glyphs share a name ("apple" may be red or green), so that the
diversity of a student can be measured as well as its obedience.

The world needs the font only to *draw* (training, evaluation); painting with the student does not.
On Debian the font is the package ``fonts-noto-color-emoji`` (OFL 1.1).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import TiueError

#: Every kind of thing with its glyphs. The first 24 are the small world that a CPU can learn.
KINDS: dict[str, str] = {
    "apple": "🍎🍏", "banana": "🍌", "cat": "🐱🐈", "frog": "🐸", "fish": "🐟🐠",
    "butterfly": "🦋", "flower": "🌻🌷🌹", "tree": "🌳🌲", "mushroom": "🍄", "star": "⭐🌟",
    "heart": "💙💚💜", "moon": "🌙", "cloud": "☁", "car": "🚗🚙", "boat": "⛵", "rocket": "🚀",
    "house": "🏠🏡", "ball": "⚽🏀🎾", "umbrella": "☂", "pizza": "🍕", "gift": "🎁",
    "ghost": "👻", "pumpkin": "🎃", "book": "📕📗📘",
    "dog": "🐶🐕", "pig": "🐷🐖", "bird": "🐦🐤", "cow": "🐮🐄", "horse": "🐴🐎", "lion": "🦁",
    "tiger": "🐯🐅", "bear": "🐻", "panda": "🐼", "rabbit": "🐰🐇", "mouse": "🐭🐁",
    "elephant": "🐘", "monkey": "🐵🐒", "fox": "🦊", "owl": "🦉", "penguin": "🐧", "turtle": "🐢",
    "snail": "🐌", "bee": "🐝", "octopus": "🐙", "whale": "🐳🐋", "crab": "🦀", "lemon": "🍋",
    "grapes": "🍇", "cherries": "🍒", "strawberry": "🍓", "pineapple": "🍍", "watermelon": "🍉",
    "carrot": "🥕", "burger": "🍔", "donut": "🍩", "cake": "🎂🍰", "bus": "🚌🚎", "train": "🚂🚆",
    "bicycle": "🚲", "plane": "✈", "balloon": "🎈", "guitar": "🎸", "drum": "🥁", "clock": "⏰",
    "key": "🔑", "bell": "🔔", "crown": "👑", "hat": "🎩", "shoe": "👟👠", "robot": "🤖",
    "snowman": "⛄", "cactus": "🌵", "sun": "🌞", "camera": "📷", "anchor": "⚓", "diamond": "💎",
}  # fmt: skip

#: Backgrounds with their mean colour (sRGB, 0 to 255).
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 62, 60), "yellow": (248, 218, 92), "green": (92, 172, 92),
    "blue": (78, 128, 218), "purple": (148, 96, 196), "pink": (246, 168, 200),
    "white": (246, 246, 244), "black": (34, 34, 38), "orange": (242, 146, 58),
    "gray": (142, 144, 148),
}  # fmt: skip

TEMPLATES = (
    "{things} on a {background} background",
    "a picture of {things} on a {background} background",
    "a sticker of {things} on a {background} background",
    "{things}, {background} background",
    "{things} on {background}",
)

SIZE = 128  #: side of a scene in pixels
GLYPH_SIZE = 109  #: the only strike the font holds
TILT = 15  #: degrees, at most
SHADE = 8  #: a background's colour varies by this much around its mean
FONT_FILES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
)


@dataclass(frozen=True)
class Thing:
    """One glyph in a scene: ``x``, ``y`` centre and ``size`` in pixels, ``tilt`` in degrees."""

    kind: str
    glyph: str
    x: float
    y: float
    size: float
    tilt: float
    mirror: bool


@dataclass(frozen=True)
class Scene:
    """What a picture shows and the words for it."""

    things: tuple[Thing, ...]
    background: str
    colour: tuple[int, int, int]
    caption: str

    def render(self) -> Image.Image:
        """The scene as a ``SIZE`` x ``SIZE`` RGB image."""
        canvas = Image.new("RGB", (SIZE, SIZE), self.colour)
        for thing in self.things:
            stamp = glyph_image(thing.glyph)
            scale = thing.size / max(stamp.size)
            if thing.mirror:
                stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            stamp = stamp.rotate(thing.tilt, Image.Resampling.BICUBIC, expand=True)
            width, height = (max(1, round(side * scale)) for side in stamp.size)
            stamp = stamp.resize((width, height), Image.Resampling.LANCZOS)
            corner = (round(thing.x - stamp.width / 2), round(thing.y - stamp.height / 2))
            canvas.paste(stamp, corner, stamp)
        return canvas


@dataclass(frozen=True)
class World:
    """The first ``kinds`` kinds, and ``more`` by name, on the first ``backgrounds`` backgrounds.

    ``pairs`` is the share of scenes with two things.
    """

    kinds: int = 24
    backgrounds: int = 8
    pairs: float = 0.25
    more: tuple[str, ...] = ()

    @property
    def kind_names(self) -> list[str]:
        return [*list(KINDS)[: self.kinds], *self.more]

    @property
    def background_names(self) -> list[str]:
        return list(BACKGROUNDS)[: self.backgrounds]

    def scene(self, rng: random.Random) -> Scene:
        """A scene drawn at random; the same generator state gives the same scene."""
        count = 2 if rng.random() < self.pairs else 1
        kinds = rng.sample(self.kind_names, count)
        background = rng.choice(self.background_names)
        colour = tuple(
            min(255, max(0, channel + rng.randint(-SHADE, SHADE)))
            for channel in BACKGROUNDS[background]
        )
        caption = rng.choice(TEMPLATES).format(things=join(kinds), background=background)
        return Scene(_place(kinds, rng), background, colour, caption)  # type: ignore[arg-type]

    def scenes(self, count: int, seed: int) -> list[Scene]:
        """``count`` scenes that depend on ``seed`` alone."""
        rng = random.Random(f"stickers/{seed}")
        return [self.scene(rng) for _ in range(count)]

    def corpus(self) -> list[str]:
        """Every one-thing caption and enough of the others to hold every word (tokenizer)."""
        kinds, colours = self.kind_names, self.background_names
        pairs = zip(kinds, kinds[1:] + kinds[:1], strict=True)
        groups = [[kind] for kind in kinds] + [list(pair) for pair in pairs]
        return [
            template.format(things=join(group), background=colour)
            for template in TEMPLATES
            for group in groups
            for colour in colours
        ]


def join(kinds: list[str]) -> str:
    """["apple", "cat"] -> "an apple and a cat"."""
    return " and ".join(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in kinds)


def sizes(count: int) -> tuple[int, int]:
    """The smallest and largest size of a thing that is one of ``count``."""
    return (70, 104) if count == 1 else (50, 62)


def places(size: float, index: int, count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the centre of a thing of this size may lie: from and to, of x and of y."""
    reach = size / 2 + 4  # tilt may widen the glyph by a few pixels
    low, high = index * SIZE / count, (index + 1) * SIZE / count
    middle = (low + high) / 2
    return (min(low + reach, middle), max(high - reach, middle)), (reach, SIZE - reach)


def _place(kinds: list[str], rng: random.Random) -> tuple[Thing, ...]:
    """One big thing anywhere, or two smaller ones side by side."""
    things = []
    for index, kind in enumerate(kinds):
        size = rng.uniform(*sizes(len(kinds)))
        columns, rows = places(size, index, len(kinds))
        x, y = rng.uniform(*columns), rng.uniform(*rows)
        tilt, mirror = rng.uniform(-TILT, TILT), rng.random() < 0.5
        things.append(Thing(kind, rng.choice(KINDS[kind]), x, y, size, tilt, mirror))
    return tuple(things)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    for file in FONT_FILES:
        if Path(file).is_file():
            return ImageFont.truetype(file, GLYPH_SIZE)
    raise TiueError(
        "The Noto Color Emoji font is not installed: on Debian or Ubuntu run "
        "`apt-get install fonts-noto-color-emoji` (only drawing the world needs it)."
    )


@lru_cache(maxsize=512)
def glyph_image(glyph: str) -> Image.Image:
    """The glyph, cropped to its ink, RGBA."""
    stamp = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(stamp).text((10, 10), glyph, font=_font(), embedded_color=True)
    box = stamp.getbbox()
    if box is None:
        raise TiueError(f"The installed emoji font has no picture for {glyph!r}: update the font.")
    return stamp.crop(box)
