"""The run: systems x data set x metrics, in a folder that remembers what was done.

    OUT/run.json            what is compared: data set, prompts, seeds
    OUT/images/LABEL/       pictures, and the manifest that a killed run goes on from
    OUT/reference/          pictures the others are held against, where they are made here
    OUT/diversity/LABEL/    several pictures of a few prompts
    OUT/kept/               features and times, under the content they were taken from
    OUT/results.json, table.md, table.csv, table.tex, quality-time.png, diversity.png, index.html

Pictures and features are the same bytes whether a run was killed or not, so all numbers but time
and memory are; those two are measured once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..baselines.find import Found, find, pictures
from ..errors import TiueError
from ..io.files import check_writable, write_atomically
from . import latency
from .data import DataSet
from .features import Extractor, open_picture
from .figures import Figures, Progress
from .images import own_side, paint
from .metrics import HALVES, NEAREST

SEEDS_A_PROMPT = 8  #: pictures of one prompt in a diversity grid


@dataclass(frozen=True)
class Options:
    """How to run.

    Args:
        seed: of the first prompt's picture; the next ones count on.
        side: px of every system's pictures; None: each its own.
        halves: random halves for intervals; 0: none.
        rounds: of timing; 0: none.
        diversity: prompts of the diversity grids; 0: none.
    """

    out: Path
    seed: int = 0
    side: int | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 8
    halves: int = HALVES
    rounds: int = latency.ROUNDS
    diversity: int = 2


@dataclass
class Run:
    """One evaluation.

    Args:
        specs: of systems, as `systems.find.parse` reads them.
        data: what is painted, and held against what.
        extractor: of the features for FID and the five others; None: neither.
        clips: for CLIPScore.
        progress: `console.progress`, or nothing.
    """

    specs: Sequence[str]
    data: DataSet
    extractor: Extractor | None
    clips: Sequence[Extractor]
    options: Options
    progress: Progress
    say: Callable[[str], Any] = lambda line: None
    accept_license: Any = False
    found: dict[str, Found] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # label -> spec
    _grid_paths: dict[str, list[str]] = field(default_factory=dict)

    def go(self) -> dict[str, Any]:
        """Do all of it; returns what results.json holds.

        Raises:
            TiueError: in one line, before anything is painted where it can be known then.
        """
        self._find()
        options, out = self.options, self.options.out
        check_writable(out)
        self._remember()
        teacher = self._teacher()
        order = [teacher, *(x for x in self.found if x != teacher)] if teacher else [*self.found]
        figures = Figures(self.data, self.extractor, self.clips, out, options.halves, self.progress)
        rows: dict[str, dict[str, Any]] = {}
        if teacher is None:
            figures.hold_against_the_data()
        for label in order:
            paths, side = self._pictures(label)
            row: dict[str, Any] = {"pictures": len(paths), "side": side}
            if label == teacher:
                figures.hold_against(paths, label)
                row["is_reference"] = True
            row["figures"] = figures.of(paths, label)
            rows[label] = {**self._about(label), **row, "files": [self._relative(p) for p in paths]}
        for label in order:
            rows[label]["time"] = self._time(label, rows[label]["side"])
        grids = self._grids()
        hidden = [label for label in order if label not in self.texts]
        result = {
            "data": {
                "name": self.data.name,
                "about": self.data.about,
                "prompts": list(self.data.prompts),
                "whole": self.data.whole,
                "paper": self.data.paper,
                "reference": teacher or self.data.about,
            },
            "nearest": NEAREST,
            "halves": options.halves,
            "seed": options.seed,
            "features": self.extractor.about if self.extractor else None,
            "clips": {clip.name: clip.about for clip in self.clips},
            "systems": {label: rows[label] for label in (*self.found,) if label not in hidden},
            "diversity": grids,
        }
        write_atomically(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        return result

    # --- before anything is painted ---------------------------------------------------------

    def _find(self) -> None:
        for text in self.specs:
            found = find(text, self.accept_license)
            if found.label in self.found:
                raise TiueError(
                    f"two systems are called {found.label}: give one a name, NAME={text}"
                )
            if found.system.sampler == "images":
                self._check_pictures(found)
            self.found[found.label], self.texts[found.label] = found, text
        if not self.found:
            raise TiueError("no systems: give their names, see `tiue evaluate --list-systems`")
        least = NEAREST + 1
        if self.extractor is not None and len(self.data.prompts) < least:
            raise TiueError(
                f"{len(self.data.prompts)} pictures are too few for k = {NEAREST}: "
                f"give --count {least} or more"
            )
        if self.extractor is not None and not self._has_reference():
            raise TiueError(
                f"{self.data.name} has nothing to hold pictures against: give --reference FOLDER "
                "or SYSTEM, or leave the features out (--features none)"
            )

    def _has_reference(self) -> bool:
        return bool(self.data.reference or self.data.teacher or self.data.draw)

    def _check_pictures(self, found: Found) -> None:
        folder = found.paths[0].resolve()
        homes = {path.parent.resolve() for path in self.data.reference}
        if any(home == folder or home.is_relative_to(folder) for home in homes):
            raise TiueError(
                f"{found.label} and the reference are the same folder, {folder}: "
                "a set held against itself says nothing"
            )
        count = len(pictures(found.paths[0]))
        if count != len(self.data.prompts):
            raise TiueError(
                f"{folder} holds {count} pictures for {len(self.data.prompts)} prompts: "
                "give one a prompt, or --count"
            )

    def _remember(self) -> None:
        """Refuse a folder that holds another comparison."""
        mine = {"data": self.data.fingerprint(), "seed": self.options.seed}
        mine |= {"side": self.options.side, "name": self.data.name}
        file = self.options.out / "run.json"
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before is not None and before != mine:
            raise TiueError(
                f"{self.options.out} holds another comparison ({before.get('name')}, seed "
                f"{before.get('seed')}): choose another folder with --out"
            )
        write_atomically(file, (json.dumps(mine, indent=2) + "\n").encode())

    def _teacher(self) -> str | None:
        """The label of the system whose samples are the reference, found if need be."""
        if self.data.teacher is None or self.extractor is None:
            return None
        for label, one in self.found.items():  # the row by that name, wherever its files are from
            if one.system.name == self.data.teacher:
                return label
        found = find(self.data.teacher, self.accept_license)
        for label, one in self.found.items():
            if one.system.sampler != "images" and one.digest() == found.digest():
                return label
        label = f"{found.label}-reference"
        self.found[label] = found
        return label

    # --- pictures ---------------------------------------------------------------------------

    def _pictures(self, label: str) -> tuple[list[Path], int]:
        found, options = self.found[label], self.options
        if found.system.sampler == "images":
            paths = pictures(found.paths[0])
            return paths, open_picture(paths[0]).width
        from ..baselines.load import load

        pipe = load(found, device=options.device, dtype=options.dtype)
        side = options.side or own_side(pipe)
        paths = self._paint(label, pipe, side, self.data.prompts, "images")
        grids = [text for text in self._grid_prompts() for _ in range(SEEDS_A_PROMPT)]
        if grids and label in self.texts:
            painted = self._paint(label, pipe, side, grids, "diversity")
            self._grid_paths[label] = [self._relative(path) for path in painted]
        return paths, side

    def _paint(
        self, label: str, pipe: Any, side: int, prompts: Sequence[str], kind: str
    ) -> list[Path]:
        told = "painting" if kind == "images" else kind
        with self.progress(f"{label}: {told}", len(prompts)) as advance:
            return paint(
                self.found[label],
                pipe,
                prompts,
                self.options.out / kind / label,
                seed=self.options.seed,
                side=side,
                batch_size=self.options.batch_size,
                advance=advance,
            )

    def _grid_prompts(self) -> list[str]:
        """The first few that differ, spread over the data set."""
        different = list(dict.fromkeys(self.data.prompts))
        wanted = min(self.options.diversity, len(different))
        return [different[i * len(different) // wanted] for i in range(wanted)]

    def _grids(self) -> dict[str, Any]:
        return {"prompts": self._grid_prompts(), "seeds": SEEDS_A_PROMPT, "files": self._grid_paths}

    def _relative(self, path: Path) -> str:
        """From the run's folder where it lies inside, so the folder can be moved."""
        path, out = path.resolve(), self.options.out.resolve()
        return path.relative_to(out).as_posix() if path.is_relative_to(out) else path.as_posix()

    # --- what is said of them ----------------------------------------------------------------

    def _time(self, label: str, side: int) -> dict[str, Any] | None:
        found, options = self.found[label], self.options
        if not options.rounds or found.system.sampler == "images" or label not in self.texts:
            return None
        key = f"time-{found.digest()[:16]}-{found.system.decoders}-{side}-{options.device}"
        with self.progress(f"{label}: timing", None):
            return latency.measured(
                self.texts[label],
                options.out / "kept",
                f"{key}-{options.dtype}-{torch.get_num_threads()}",
                side=side,
                device=options.device,
                dtype=options.dtype,
                rounds=options.rounds,
            )

    def _about(self, label: str) -> dict[str, Any]:
        found = self.found[label]
        record = found.system.record()
        return {
            "system": found.system.name,
            "about": found.system.about,
            "steps": found.system.steps,
            "guidance": found.system.guidance,
            "licence": record["licence"],
            "paper": found.system.paper or None,
            "digest": found.digest(),
            "revisions": list(found.revisions),
        }
