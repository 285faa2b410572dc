"""Make the graphs that the miniature is shipped with: ``python -m tiue_core.stickers.make_graphs``

They are derived from its weights and must be made again with every new version of them; a test
holds the two together by the content's hash. So the first picture needs no torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..export.write import export_set
from ..pipelines.load import load
from ..students.registry import REGISTRY
from ..students.resolve import find

FOLDER = Path(__file__).parent / "graph"


def make(folder: Path = FOLDER) -> int:
    """Replace ``folder`` by the graphs of the weights that are shipped now; returns their bytes."""
    source = find("stickers")
    pipe = load(source, device="cpu", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    named: dict[str, Any] = {"student": source.name, "student_revision": None, "loras": []}
    named |= {"student_hash": source.content_hash(), "licence": REGISTRY[source.name].license}
    with TemporaryDirectory(dir=folder.parent, prefix=".tiue-") as made:
        export_set(pipe, Path(made), record=named)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    print(f"{make() / 1e6:.1f} MB in {FOLDER}")
