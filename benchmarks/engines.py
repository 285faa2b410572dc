"""One picture of the miniature, from words to pixels, by every engine, and by another tree.

    python benchmarks/engines.py                          # this tree
    python benchmarks/engines.py --against ../before      # and the pipeline of that checkout
    python benchmarks/engines.py --generate               # `tiue generate`, from the shell
    python benchmarks/engines.py --page                   # the page's text, encoder, decoders, VAE
    python benchmarks/engines.py --batch                  # `tiue batch`, 320 rows
    python benchmarks/engines.py --right 64               # how far from PyTorch's pictures

Each way lives in a process of its own and paints when it is told to, one after the other, so that
what else the machine does falls on all alike. Medians; CPU seconds beside elapsed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).parents[1]
PROMPT = "a cat on a blue background"
ROWS = 320


def worker(engine: str) -> None:
    """Paints a picture for every line of its input and answers with the seconds."""
    from tiue_core import TiuePipeline

    if engine == "page":
        return page()
    pipe = TiuePipeline.from_pretrained("stickers")
    if engine != "pipeline":
        pipe.optimize(engine)
    for seed, _ in enumerate(sys.stdin):
        began, used = time.perf_counter(), time.process_time()
        pipe(PROMPT, seed=seed)
        spent = time.perf_counter() - began, time.process_time() - used
        print("\n" + json.dumps(spent), flush=True)


def page() -> None:
    """The same with the page's own painter, by the seconds that it shows."""
    from tiue_core.students import find

    try:
        from tiue_core.app.paint import paint
        from tiue_core.app.state import Order
        from tiue_core.app.state import ServerConfig as Config
        from tiue_core.app.worker import Models
    except ImportError:  # as it was called in 0.1.0
        from tiue_core.page.paint import paint
        from tiue_core.page.state import House as Config
        from tiue_core.page.state import Order
        from tiue_core.page.worker import Models
    models = Models(Config.of([find("stickers")]))
    for seed, _ in enumerate(sys.stdin):
        used = time.process_time()
        seconds = paint(models, Order("stickers", PROMPT, seed)).seconds
        spent = sum(seconds.values()), time.process_time() - used
        print("\n" + json.dumps(spent), flush=True)


class Painter:
    """A worker in its own process, with the code of ``tree``."""

    def __init__(self, name: str, tree: Path, engine: str):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
        )

    def paint(self) -> tuple[float, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("["):
                elapsed, used = json.loads(line)
                return elapsed, used
        raise SystemExit(f"{self.name} ended: python {__file__} --worker shows why")


def command(tree: Path, words: Sequence[str]) -> tuple[float, float]:
    """`tiue ...` once, elapsed and CPU seconds; what it writes is thrown away."""
    before, began = os.times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tiue_core", *words, "--out", folder],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,  # where one stands goes before the path
        ).stdout
    elapsed, after = time.perf_counter() - began, os.times()
    used = sum(after[2:4]) - sum(before[2:4])  # of the children
    rate = re.search(r"([\d.]+) images/s", said)  # a list's own, without the start
    return (1 / float(rate[1]), used / ROWS) if rate else (elapsed, used)


def in_turn(ways: dict[str, Callable[[], tuple[float, float]]], rounds: int, warm: int) -> None:
    """Every way once a round, after ``warm`` rounds that do not count; prints the medians."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(warm + rounds):
        for name, way in ways.items():
            spent[name].append(way())
    first = None
    for name, pairs in spent.items():
        elapsed, used = (statistics.median(column) for column in zip(*pairs[warm:], strict=True))
        first = first or (elapsed, used)
        print(
            f"{name:28} {1e3 * elapsed:8.1f} ms {1e3 * used:8.1f} ms CPU "
            f"{elapsed / first[0]:6.2f} {used / first[1]:6.2f}"
        )


def right(count: int) -> None:
    """Every engine and precision against PyTorch, over ``count`` fresh prompts: the largest step
    of 255, and the PSNR of the worst picture and of all together."""
    import numpy as np

    from tiue_core import TiuePipeline
    from tiue_core.export.runtime import GraphSet
    from tiue_core.export.sessions import ENGINES, installed
    from tiue_core.optimize import cache
    from tiue_core.stickers.world import World

    prompts = [scene.caption for scene in World(pairs=0.25).scenes(count, 900_001)]
    pipe = TiuePipeline.from_pretrained("stickers")
    wanted = pipe(prompts, seed=list(range(count)), output_type="np").images.transpose(0, 3, 1, 2)
    folder = next(folder for folder, about in cache.kept() if about["student"] == "stickers")
    for engine in installed():
        for precision in ENGINES[engine].precisions:
            graphs = GraphSet(folder, engine, precision)
            found = [graphs.run([p], [seed])[0][0] for seed, p in enumerate(prompts)]
            squares = ((np.stack(found) - wanted) ** 2).mean((1, 2, 3))
            levels = np.abs((np.stack(found) * 255).round() - (wanted * 255).round()).max()
            worst, all_of_them = (-10 * np.log10(x) for x in (squares.max(), squares.mean()))
            print(
                f"{engine:12} {precision:9} at most {levels:3.0f} of 255, worst {worst:5.1f} dB, "
                f"all {all_of_them:5.1f} dB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--against", type=Path, help="another checkout, measured first")
    parser.add_argument("--engines", default="torch,onnxruntime,openvino")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--generate", action="store_true", help="the command, not the pipeline")
    parser.add_argument("--batch", action="store_true", help="a list: seconds of one picture")
    parser.add_argument("--page", action="store_true", help="the page's own painter")
    parser.add_argument("--right", type=int, metavar="N", help="differences, not times")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker)
    if given.right:
        return right(given.right)
    trees = {"before": given.against.resolve()} if given.against else {}
    if given.generate or given.batch:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.csv"
            rows.write_text("\n".join(["prompt,seed", *(f"{PROMPT},{i}" for i in range(ROWS))]))
            words = ["generate", PROMPT] if given.generate else ["batch", str(rows)]
            trees[f"tiue {words[0]}"] = HERE
            commands = {name: partial(command, tree, words) for name, tree in trees.items()}
            return in_turn(commands, given.rounds, warm=1)
    if given.page:
        painters = [Painter(name, tree, "page") for name, tree in {**trees, "page": HERE}.items()]
        return in_turn({painter.name: painter.paint for painter in painters}, given.rounds, warm=3)
    painters = [Painter(name, tree, "pipeline") for name, tree in trees.items()]
    painters += [Painter(name, HERE, name) for name in ("pipeline", *given.engines.split(","))]
    in_turn({painter.name: painter.paint for painter in painters}, given.rounds, warm=2)


if __name__ == "__main__":
    main()
