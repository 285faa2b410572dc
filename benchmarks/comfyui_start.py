"""How long ComfyUI takes to start with the pack and without it, in turn; and the pack's own part.

    python benchmarks/comfyui_start.py --rounds 4

Every start has a base folder of its own that was empty, no other pack, and is over when the server
answers. Of a round, the one that begins changes. "import" is what ComfyUI's own log says that the
pack took, "extra" the difference of the medians: torch is ComfyUI's own and in both. Prints one
JSON object, and writes it with --out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "comfyui"))
from place import Comfy, find
from server import Server

_IMPORT = re.compile(r"([\d.]+) seconds.*: .*custom_nodes/tiue\b")


def start(comfy: Comfy, pack: bool) -> tuple[float, float | None]:
    """Seconds until it answers, and those that it says of the pack's import."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(comfy, Path(folder) / "base")
        if not pack:
            (server.base / "custom_nodes" / "tiue").unlink()
        with server:
            said = _IMPORT.search(server.log)
            assert (said is not None) == pack, server.log[-2000:]
            return server.seconds, float(said[1]) if said else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    comfy = find()
    if comfy is None:
        sys.exit("no ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI")
    seconds: dict[str, list[float]] = {"without": [], "with": [], "import": []}
    start(comfy, True)  # so that no file is read from the disk for the first time
    for turn in range(arguments.rounds):
        for which in ("without", "with")[:: 1 if turn % 2 == 0 else -1]:
            whole, imported = start(comfy, which == "with")
            seconds[which].append(round(whole, 2))
            if imported is not None:
                seconds["import"].append(imported)
            print(which, seconds[which][-1], imported or "", file=sys.stderr, flush=True)
    medians = {which: round(statistics.median(times), 2) for which, times in seconds.items()}
    extra = round(medians["with"] - medians["without"], 2)
    result = json.dumps(
        {"comfyui": comfy.version, "seconds": seconds, "medians": medians, "extra": extra}
    )
    print(result)
    if arguments.out:
        arguments.out.write_text(result + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
