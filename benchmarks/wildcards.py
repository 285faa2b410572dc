"""A collection of wildcard files: what is refused, which prompts still hold the name of a file, and
the time a prompt, beside dynamicprompts.

python benchmarks/wildcards.py FOLDER            # a collection of your own: 200 of its files
python benchmarks/wildcards.py FOLDER --most 100000 --rounds 1     # all of them
python benchmarks/wildcards.py                   # five layers of 20,000 lines each, made here
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = re.compile(r"__[^_\s]\S*__")


def layers(folder: Path, lines: int = 20_000) -> None:
    """`a` uses `b`, ... `e`."""
    for one, inner in zip("abcde", "bcde.", strict=True):
        begin = "" if inner == "." else f"__{inner}__ "
        text = "".join(f"{begin}word {one} {k}\n" for k in range(lines))
        (folder / f"{one}.txt").write_text(text)


def each(names: list[str], sample: Callable[[str, int], str], rounds: int) -> dict[str, Any]:
    """Seconds a prompt, without the first of each name; the names that are refused; and those of
    which a prompt holds a name in `__`: words that nobody meant."""
    refused, unread, seconds, made = [], [], 0.0, 0
    for name in names:
        try:
            sample(name, 0)
            began = time.perf_counter()
            prompts = [sample(name, seed) for seed in range(1, rounds + 1)]
        except Exception as error:
            refused.append(f"{name}: {error}"[:160])
            continue
        seconds, made = seconds + time.perf_counter() - began, made + rounds
        unread += [f"{name}: {prompt}"[:160] for prompt in prompts if _NAME.search(prompt)][:1]
    each_ms = round(1000 * seconds / max(made, 1), 3)
    counts = {"refused": len(refused), "unread": len(unread)}
    return {"ms": each_ms, **counts, "which": {"refused": refused, "unread": unread}}


def main() -> None:
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    from tiue_core.batch.wildcards import Wildcards

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3, help="prompts of each file")
    parser.add_argument("--most", type=int, default=200, help="files, evenly chosen")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        if given.folder is None:
            layers(folder)
        ours = Wildcards(folder)
        assert ours.files is not None
        names = ours.files.names() if given.folder else ["a"]
        names = names[:: max(len(names) // given.most, 1)]
        theirs = RandomPromptGenerator(WildcardManager(folder))
        result = {
            "files": len(names),
            "ours": each(names, lambda name, seed: ours.sample(f"__{name}__", seed), given.rounds),
            "dynamicprompts": each(
                names, lambda name, seed: str(theirs.generate(f"__{name}__", 1)[0]), given.rounds
            ),
            "left_out": len(ours.left_out),
        }
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
