"""What ComfyUI's registry would pack: small, whole, and nothing that a node scanner flags."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
LIMIT = 20 * 2**20  # 16 until the autoencoder grew from 2 to 8 MB, for pictures four times as sharp
FLAGGED = {"eval", "exec", "compile", "__import__"}


def _git(*options: str) -> set[str]:
    command = ["git", "ls-files", "-z", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return {name for name in result.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def packed() -> list[Path]:
    """Tracked files that .comfyignore leaves in."""
    names = _git() - _git("-ci", "-X", ".comfyignore")
    return [ROOT / name for name in sorted(names) if (ROOT / name).is_file()]


def test_it_is_small(packed: list[Path]) -> None:
    assert sum(path.stat().st_size for path in packed) <= LIMIT


def test_the_student_the_nodes_and_their_pages_are_in(packed: list[Path]) -> None:
    names = {str(path.relative_to(ROOT)) for path in packed}
    student = "tiue_core/stickers/student"
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "install.py", "LICENSE"} <= names
    assert f"{student}/unet/diffusion_pytorch_model.safetensors" in names
    whole = ("nodes", "web/js", "web/docs", "locales", student, "tiue_core/core")
    for folder in whole:
        tracked = {name for name in _git(folder) if not name.endswith(".pyc")}
        assert tracked <= names, f"{folder} is torn"


def test_nothing_that_a_scanner_flags(packed: list[Path]) -> None:
    for path in packed:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FLAGGED, f"{path}: {node.func.id}()"


def test_the_requirements_are_the_projects_own() -> None:
    """One list: a requirement of the nodes is one of pyproject's, with the same bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["dependencies"])
    known |= {each for extra in project["optional-dependencies"].values() for each in extra}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert wanted and set(wanted) <= known
    assert not [line for line in wanted if re.match(r"torch\b", line)]  # torch is ComfyUI's


def test_the_registry_finds_what_it_asks_for() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    classifiers = whole["project"]["classifiers"]
    assert [line for line in classifiers if line.startswith("Operating System ::")]
    assert [line for line in classifiers if line.startswith("Environment :: GPU ::")]
    assert whole["tool"]["comfy"]["PublisherId"] and whole["tool"]["comfy"]["DisplayName"]


def test_one_folder_of_templates() -> None:
    """ComfyUI serves each of these under one address, and the first of them answers for all."""
    taken = {"example_workflows", "example", "examples", "workflow", "workflows"}
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} & taken == {"workflows"}
