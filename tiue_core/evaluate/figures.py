"""What is measured of a system's pictures, each number with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .data import DataSet
from .features import Extractor, clip_scores, measure
from .metrics import NEAREST, distances, standard_errors

Z = 1.96  #: of a 95 % interval
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Figures:
    """The numbers of one run.

    Args:
        data: what was painted, and what it is held against.
        extractor: of the features for FID and the five others; None: neither.
        clips: for CLIPScore.
        out: the run's folder; what an extractor saw is kept in it, under the pictures' content.
        halves: random halves for intervals; 0: none.
        progress: as `run.Run` has it.
    """

    data: DataSet
    extractor: Extractor | None
    clips: Sequence[Extractor]
    out: Path
    halves: int
    progress: Progress
    _reference: Tensor | None = None  # (N, D)

    def hold_against_the_data(self) -> None:
        """Pictures are held against the data set's own, drawn here where they are not given."""
        if self.extractor is None:
            return
        paths: Sequence[Path] = self.data.reference
        if self.data.draw is not None:
            paths = self.data.draw(self.out / "reference")
        one_size = self.extractor.name == "judge"  # the others crop and resize
        looked = self._look(self.extractor, paths, "reference", "the reference", one_size)
        self._reference = looked["features"]

    def hold_against(self, paths: Sequence[Path], label: str) -> None:
        """Pictures are held against those of the system ``label``."""
        assert self.extractor is not None
        self._reference = self._look(self.extractor, paths, label)["features"]

    def of(self, paths: Sequence[Path], label: str) -> dict[str, dict[str, float]]:
        """All of one system: {name: {"value", "low", "high"}}, without the last two if there are
        no halves.

        Raises:
            TiueError: the pictures cannot be read, are of different sizes, are too few, or what
                was seen in them is no number.
        """
        found: dict[str, dict[str, float]] = {}
        if self.extractor is not None:
            looked = self._look(self.extractor, paths, label)
            found |= self._distances(looked["features"])
            if self.data.scenes:
                found |= self._rightness(looked)
        for clip in self.clips:
            assert clip.texts is not None
            images = self._look(clip, paths, label)["image"]
            scores = clip_scores(images, clip.texts(self.data.prompts))
            found[clip.name] = self._mean(scores.double())
        return found

    def _look(
        self,
        extractor: Extractor,
        paths: Sequence[Path],
        label: str,
        name: str = "",
        one_size: bool = True,
    ) -> dict[str, Tensor]:
        """``name`` is what an error calls the pictures; by default ``label``."""
        with self.progress(f"{label}: {extractor.name}", len(paths)) as advance:
            kept, name = self.out / "kept", name or label
            return measure(extractor, paths, kept, name=name, one_size=one_size, advance=advance)

    def _distances(self, fake: Tensor) -> dict[str, dict[str, float]]:
        real = self._reference
        assert real is not None
        with self.progress("distances", 1 + self.halves) as advance:
            found = distances(real, fake)
            advance(1)

            def half(a: Tensor, b: Tensor) -> dict[str, float]:
                advance(1)
                return distances(real[a], fake[b])

            enough = min(len(real), len(fake)) // 2 > NEAREST
            draws = self.halves if enough else 0
            errors = standard_errors(half, len(real), len(fake), draws)
        return {name: _figure(value, errors.get(name)) for name, value in found.items()}

    def _rightness(self, looked: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        """Shares of pictures that show what was asked for."""
        from ..stickers.judge import Judge, labels, right
        from ..stickers.world import World

        settings = Judge.load().settings
        world = World(settings["kinds"], settings["backgrounds"], pairs=0)
        hits, grounds = right(
            (looked["things"], looked["background"]), labels(world, list(self.data.scenes))
        )
        shares = {"thing": hits, "background": grounds}
        return {name: self._mean(one.double()) for name, one in shares.items()}

    def _mean(self, values: Tensor) -> dict[str, float]:
        def half(_: Tensor, rows: Tensor) -> dict[str, float]:
            return {"mean": float(values[rows].mean())}

        errors = standard_errors(half, len(values), len(values), self.halves)
        return _figure(float(values.mean()), errors.get("mean"))


def _figure(value: float, error: float | None) -> dict[str, float]:
    """A number with its 95 % interval."""
    if error is None:
        return {"value": value}
    return {"value": value, "low": value - Z * error, "high": value + Z * error}
