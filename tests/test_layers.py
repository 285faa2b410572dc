"""The tree shows the architecture: rooms in layers, arrows one way, no circles."""

from __future__ import annotations

from import_graph import ROOT, circles, imports, modules, rooms

#: From the ground up: a room may import those before it, and itself.
LAYERS = (
    "errors",
    "core",
    "io",
    "shared",
    "export",
    "optimize",
    "students",
    "pipelines",
    "stickers",
    "baselines",
    "batch",
    "bench",
    "evaluate",
    "train",
    "app",
    "cli",
)


def test_no_circles() -> None:
    graph = imports()
    assert circles(graph) == [] and circles(rooms(graph)) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_arrows_go_down() -> None:
    found = rooms(imports())
    entries = {"", "__main__"}  # the public names, and the command
    assert set(found) - entries == set(LAYERS)
    upward = {
        f"{room} imports {other}"
        for room, others in found.items()
        if room not in entries
        for other in others
        if LAYERS.index(other) > LAYERS.index(room)
    }
    assert upward == set()


def test_the_method_stands_alone() -> None:
    """``core`` imports nothing of the project outside itself."""
    assert rooms(imports())["core"] == set()


def test_at_most_three_loose_modules() -> None:
    loose = {name for name, path in modules().items() if path.parent == ROOT / "tiue_core"}
    assert loose == {"", "__main__", "errors"}


def test_benchmarks_have_no_circles() -> None:
    assert circles(imports(package="benchmarks", relative=False)) == []


def test_old_import_paths_lead_to_the_same_modules() -> None:
    import tiue_core.batch.formats
    import tiue_core.batch.templates
    import tiue_core.pipeline
    import tiue_core.savings.layers

    import tiue_core.shared.layers
    from tiue_core import students
    from tiue_core.batch import jobs
    from tiue_core.io import images
    from tiue_core.pipelines.base import TiuePipeline
    from tiue_core.students import resolve

    assert tiue_core.batch.templates is jobs and tiue_core.batch.formats is images
    assert tiue_core.savings.layers is tiue_core.shared.layers
    assert tiue_core.pipeline.TiuePipeline is TiuePipeline
    assert students.find is resolve.find and callable(students.load)
