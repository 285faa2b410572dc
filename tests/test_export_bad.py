"""Graphs that cannot be used, and what is asked of them that they cannot do: one clear line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_graphs import about, write_graph
from PIL import Image

from tiue_core import cli
from tiue_core.errors import TiueError
from tiue_core.export import noise
from tiue_core.export.runtime import Graph

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture
def run(capfd: Any) -> Callable[..., tuple[int, str, str]]:
    """The command line: status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def refusal(path: Path) -> str:
    with pytest.raises(TiueError) as caught:
        Graph(path, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_graph_paints(tmp_path: Path) -> None:
    """So that the refusals below are of what is wrong, not of graphs made by hand."""
    (image,) = Graph(write_graph(tmp_path / "a.onnx"), "cpu")(["a cat"], [3])
    drawn = noise.draw_noise([3], (4, 8, 8))[0, :3]
    wanted = 255 / (1 + np.exp(-(drawn + 1 / 6)))  # one known word of six
    assert np.abs(np.asarray(image).transpose(2, 0, 1) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"description": about(format=2)}, "has format 2 and this tiue reads 1: export"),
        ({"description": about(format="new")}, "has format 'new' and this tiue reads 1"),
        ({"description": False}, "does not say which student it is"),
        ({"description": "{"}, "does not say which student it is"),
        ({"description": "[1]"}, "does not say which student it is"),
        ({"description": '{"format": 1, "whole": true}'}, "damaged description (channels, factor"),
        ({"description": about(whole=False)}, "is a part of a student"),
        ({"opset": 99}, "newer exporter than this onnxruntime reads: update onnxruntime"),
        ({"ir": 99}, "newer exporter than this onnxruntime reads: update onnxruntime"),
    ],
)
def test_unknown_exporters(tmp_path: Path, made: dict[str, Any], expected: str) -> None:
    assert expected in refusal(write_graph(tmp_path / "graph.onnx", **made))


def test_not_a_graph(tmp_path: Path) -> None:
    whole = write_graph(tmp_path / "whole.onnx").read_bytes()
    for name, content in {"empty": b"", "words": b"a cat", "torn": whole[:-500]}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        assert "is not a graph that onnxruntime can read" in refusal(path)
    assert "is a folder" in refusal(tmp_path)
    assert "does not exist: give a graph made by `tiue export`" in refusal(tmp_path / "no.onnx")


def test_external_data(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "big.onnx", external=True)
    data = tmp_path / "big.onnx.data"
    Graph(graph, "cpu")(["a cat"], [0])
    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    assert f"the weights in {data.name} are not those of" in refusal(graph)
    renamed = graph.rename(tmp_path / "renamed.onnx")
    data.write_bytes(whole)
    Graph(renamed, "cpu")  # the data's name is in the graph
    data.unlink()
    assert "keeps its weights in big.onnx.data, which is not beside it" in refusal(renamed)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--width 16", "this graph paints 8 x 8 pixels only, not 16 x 8: export the student with"),
        ("--seed -1", "seed is -1: give a whole number from 0"),
        ("--student stickers", "--student is fixed in a graph"),
        ("--steps 2", "--steps is fixed in a graph"),
        ("--device abacus", "onnxruntime has no device 'abacus' here: use"),
    ],
)
def test_what_a_graph_does_not_take(run: Any, tmp_path: Path, given: str, expected: str) -> None:
    graph = write_graph(tmp_path / "graph.onnx")
    out = tmp_path / "out"
    status, _, err = run("generate", "a cat", "--graph", graph, "--out", out, *given.split())
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("size", [(2, 8), (8, 9), (64, 8)])
def test_sizes_of_a_dynamic_graph(tmp_path: Path, size: tuple[int, int]) -> None:
    graph = Graph(write_graph(tmp_path / "any.onnx", about(dynamic_size=True)), "cpu")
    assert graph(["a cat"], [0], 32, 6)[0].size == (32, 6)
    with pytest.raises(TiueError, match=r"takes sides from 4 to 32 in steps of 2 pixels, not \d+"):
        graph(["a cat"], [0], *size)


def test_without_the_packages(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write_graph(tmp_path / "graph.onnx")
    for package in ("onnxruntime", "tokenizers"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            status, _, err = run("generate", "a cat", "--graph", graph, "--out", tmp_path)
        assert status == 1 and err.startswith(f"error: {package} is not installed: pip install ")
        assert len(err.splitlines()) == 1
    for package in ("onnx", "onnx_ir", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            status, _, err = run("export", "stickers", "--out", tmp_path / "no.onnx")
        assert status == 1 and f"error: {package} is not installed: pip install " in err
    assert not (tmp_path / "no.onnx").exists()


def test_export_options_that_are_wrong(run: Any, tmp_path: Path) -> None:
    for given, expected in {
        "--to tflite": "tflite: give onnx or openvino or pt2 or checkpoint",
        "--decoders some": "some: give exact or fast",
        "--dtype int8": "int8: give float32 or float16",
        "--to pt2": "let it end in .pt2",
    }.items():
        status, _, err = run("export", "stickers", "--out", tmp_path / "a.onnx", *given.split())
        assert status != 0 and expected in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_made_again(run: Any, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.onnx")
    arguments = ["generate", "a  cat\n", "--graph", graph, "--seed", 2**40, "--count", 5]
    status, out, _ = run(*arguments, "--out", tmp_path / "one", "--json")
    made = json.loads(out)["images"]
    assert status == 0 and [each["seed"] for each in made] == [2**40 + i for i in range(5)]
    last = made[-1]["path"]
    again = ["generate", "--graph", graph, "--like", last, "--out", tmp_path / "two", "--json"]
    status, out, err = run(*again)
    assert status == 0 and not err
    with Image.open(last) as one, Image.open(json.loads(out)["images"][0]["path"]) as two:
        assert np.array_equal(np.asarray(one), np.asarray(two))
        assert json.loads(two.text["tiue"])["prompt"] == "a cat"  # type: ignore[attr-defined]
    other = write_graph(tmp_path / "other.onnx", about(student_hash="1" * 64))
    status, out, err = run("generate", "--graph", other, "--like", last, "--out", tmp_path / "two")
    assert status == 0 and "other weights" in err
