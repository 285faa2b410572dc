"""A list of prompts to a folder of pictures, with the engine behind `tiue batch`.

    python docs/examples/list_to_folder.py [FOLDER]

A second run goes on where the first one stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiue_core.batch.studio import Plan, Studio

LIST = """prompt,seed,count
a cat on a blue background,1,2
a {boat|rocket} on a white background,5,
"""


def main(folder: Path) -> None:
    studio = Studio.open("stickers")
    plan = Plan(LIST, kind="csv", names="{slug}_{seed}")
    with studio.run(plan, folder) as run:
        for result in run:
            print(result.kind, result.path or result.message)
    print(f"{run.counts.made} made in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
