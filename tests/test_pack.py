"""What ComfyUI's registry would pack: small, whole, and nothing that a node scanner flags."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
LIMIT = 16_000_000  # bytes of the archive that comfy-cli uploads
FLAGGED = {"eval", "exec", "compile", "__import__"}
ACCELERATORS = {  # all that comfy-cli 1.23.0 knows
    f"Environment :: {name}"
    for name in (
        "GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "GPU :: Apple Metal",
        "NPU :: Huawei Ascend",
    )
}  # fmt: skip
COMFY = os.environ.get("COMFY_CLI") or shutil.which("comfy")


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


def test_it_is_small(packed: list[Path], tmp_path: Path) -> None:
    """As comfy-cli packs it; weights in 8 binary digits pack by a seventh (`train/ship.py`)."""
    with zipfile.ZipFile(tmp_path / "node.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in packed:
            archive.write(path, path.relative_to(ROOT))
    assert (tmp_path / "node.zip").stat().st_size <= LIMIT


def test_shipped_weights_are_short() -> None:
    import torch
    from safetensors.torch import load_file

    from tiue_core.train.ship import DIGITS, shorten

    for file in (ROOT / "tiue_core" / "stickers" / "student").rglob("*.safetensors"):
        for name, weight in load_file(file).items():
            if weight.ndim > 1:
                mantissa = torch.frexp(weight.float())[0] * 2**DIGITS
                assert torch.equal(mantissa, mantissa.round()), name
    layer = torch.nn.Linear(64, 64)
    before = layer.weight.detach().clone()
    off = (shorten(layer).weight - before).abs() / before.abs()
    assert 0 < off.max() <= 2.0**-DIGITS


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
    named = {line for line in classifiers if line.startswith("Environment ::")}
    assert named and named <= ACCELERATORS  # of one more, comfy-cli drops them all
    assert whole["tool"]["comfy"]["PublisherId"] and whole["tool"]["comfy"]["DisplayName"]


def test_icon_and_banner_are_as_the_registry_wants_them() -> None:
    with Image.open(ROOT / "docs" / "icon.png") as icon:
        assert icon.width == icon.height <= 400
    with Image.open(ROOT / "docs" / "banner.png") as banner:
        assert banner.width * 9 == banner.height * 21


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the tree as scripts/address reads."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/address"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def _address(checkout: Path, *given: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("tomlkit")
    command = [sys.executable, str(checkout / "scripts" / "address"), *given]
    return subprocess.run(command, capture_output=True, text=True)


def test_one_command_writes_the_address(checkout: Path) -> None:
    file = checkout / "pyproject.toml"
    before = file.read_text(encoding="utf-8")
    first = _address(checkout, "https://github.com/somebody/tiue.git")
    assert first.returncode == 0, first.stderr
    raw = "https://gitlab.com/somebody/tiue/-/raw/main"
    again = _address(checkout, "https://gitlab.com/somebody/tiue/", "--raw", raw)
    assert again.returncode == 0, again.stderr
    whole, was = tomllib.loads(file.read_text(encoding="utf-8")), tomllib.loads(before)
    assert whole["project"].pop("urls") == {
        "Repository": "https://gitlab.com/somebody/tiue",
        "Documentation": "https://gitlab.com/somebody/tiue/tree/HEAD/docs",
        "Issues": "https://gitlab.com/somebody/tiue/issues",
    }
    for name in ("Icon", "Banner"):
        shown = whole["tool"]["comfy"][name]
        assert shown == f"{raw}/docs/{name.lower()}.png"
        assert (ROOT / shown.removeprefix(f"{raw}/")).is_file()
        whole["tool"]["comfy"][name] = was["tool"]["comfy"][name]
    was["project"].pop("urls", None)
    assert whole == was
    comments = [line for line in before.splitlines() if "#" in line and "=" not in line]
    assert comments and all(line in file.read_text(encoding="utf-8") for line in comments)


@pytest.mark.parametrize(
    "given",
    [
        "http://github.com/somebody/tiue",
        "git@github.com:somebody/tiue.git",
        "github.com/somebody/tiue",
        "https://github.com",
        "https://github.com/somebody",
        "https://localhost/somebody/tiue",
        "https://user:secret@github.com/somebody/tiue",
        "https://github.com/somebody/tiue?tab=readme",
        "https://github.com/some body/tiue",
        "https://[github.com/somebody/tiue",
        "",
    ],
)
def test_what_is_no_address_is_one_line(checkout: Path, given: str) -> None:
    before = (checkout / "pyproject.toml").read_bytes()
    ended = _address(checkout, given)
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and "https://HOST/OWNER/NAME" in ended.stderr
    assert (checkout / "pyproject.toml").read_bytes() == before
    assert [path.name for path in checkout.iterdir() if path.is_file()] == ["pyproject.toml"]


@pytest.mark.skipif(
    not COMFY, reason="no comfy-cli: pip install comfy-cli, or name it in COMFY_CLI"
)
def test_the_registrys_own_tool_takes_it(tmp_path: Path, packed: list[Path]) -> None:
    tree = tmp_path / "tiue"
    for name in _git():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tree, check=True)
    assert _address(tree, "https://example.org/somebody/tiue").returncode == 0
    for verb in ("validate", "pack"):
        command = [str(COMFY), "--skip-prompt", "--no-enable-telemetry", "node", verb]
        ended = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        said = ended.stdout + ended.stderr
        assert ended.returncode == 0 and "arning" not in said, said
    with zipfile.ZipFile(tree / "node.zip") as archive:
        assert {ROOT / name for name in archive.namelist()} == set(packed)
    size = (tree / "node.zip").stat().st_size
    print(f"node.zip: {size / 2**20:.1f} MiB")
    assert size <= LIMIT


def test_one_folder_of_templates() -> None:
    """ComfyUI serves each of these under one address, and the first of them answers for all."""
    taken = {"example_workflows", "example", "examples", "workflow", "workflows"}
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} & taken == {"workflows"}
