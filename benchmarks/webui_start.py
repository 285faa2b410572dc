"""How long Forge takes to start with the extension and without it, in turn.

    python benchmarks/webui_start.py --rounds 4

Every start has a data folder of its own that was empty, page and API, and is over when the API
answers. Of a round, the one that begins changes. The ratio is that of the medians. The very first
start with the extension also writes the miniature's checkpoint, unless an earlier one did. Prints
one JSON object, and writes it with --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "webui"))
from forge_server import Forge, Server, find


def start(forge: Forge, extension: bool) -> float:
    """Seconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(forge, Path(folder), extension=extension, probe=False)
        with server:
            return server.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    forge = find()
    if forge is None:
        sys.exit("no Forge at $FORGE_PATH or ~/forge")
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    start(forge, True)  # so that no file is read from the disk for the first time
    for turn in range(arguments.rounds):
        for which in ("without", "with")[:: 1 if turn % 2 == 0 else -1]:
            seconds[which].append(round(start(forge, which == "with"), 2))
            print(which, seconds[which][-1], file=sys.stderr, flush=True)
    medians = {which: round(statistics.median(times), 2) for which, times in seconds.items()}
    ratio = round(medians["with"] / medians["without"], 3)
    result = json.dumps({"seconds": seconds, "medians": medians, "ratio": ratio})
    print(result)
    if arguments.out:
        arguments.out.write_text(result + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
