"""What somebody else gets: wheel and sdist, built and installed; examples; help of the package."""

from __future__ import annotations

import json
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: Any, cwd: Path, **environment: str) -> str:
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("lock", "extra"), [("ci", "test"), ("space", "app")])
def test_locks_name_all_that_their_extra_wants(lock: str, extra: str) -> None:
    """What is not in them is not installed, and a test that asks for it skips without a word."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def wanted(requirements: list[str]) -> set[str]:
        names: set[str] = set()
        for one in requirements:
            name, more = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", one).groups()  # type: ignore[union-attr]
            if name != project["name"]:
                names.add(name.lower().replace("_", "-"))
            for extra in (more or "").split(",") if name == project["name"] else ():
                names |= wanted(project["optional-dependencies"][extra])
        return names

    lines = (ROOT / "locks" / f"{lock}.txt").read_text().splitlines()
    locked = {line.partition("==")[0] for line in lines}
    needed = wanted([*project["dependencies"], f"tiue[{extra}]"])
    assert len(needed) > 10 and needed - locked == set()


@pytest.mark.slow
def test_wheel_and_sdist_are_built_and_installed(tmp_path: Path) -> None:
    pytest.importorskip("build")
    source = tmp_path / "source"
    run("git", "clone", "-q", ROOT, source, cwd=tmp_path)
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist"),
        cwd=source,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for part in ("app/page.js", "app/style.css", "stickers/student/model_index.json", "py.typed"):
        assert f"tiue_core/{part}" in names
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/tiue_core/app/page.js") for name in archive.getnames())
    # What the wheel depends on is borrowed from here: only the project itself is installed.
    borrowed = {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
    for package in (wheel, sdist):
        folder = tmp_path / package.suffix.strip(".")
        run(sys.executable, "-m", "venv", folder, cwd=tmp_path)
        python = folder / "bin" / "python"
        options = ("--no-deps", "--no-build-isolation", "--force-reinstall", "-q")
        run(python, "-m", "pip", "install", *options, package, cwd=tmp_path, **borrowed)
        said = run(
            *(folder / "bin" / "tiue", "generate", "a cat on a blue background", "--json"),
            *("--out", folder / "out"),
            cwd=tmp_path,
            **borrowed,
        )
        assert Path(json.loads(said)["images"][0]["path"]).is_file()
        where = run(
            python, "-c", "import tiue_core; print(tiue_core.__file__)", cwd=tmp_path, **borrowed
        )
        assert where.startswith(str(folder))


def test_the_method_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "examples" / "method.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (tmp_path / "method.py").write_text("\n".join(cells) + "\nimage.save('out.png')\n")
    run(sys.executable, "method.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (tmp_path / "out.png").is_file()
    assert all(not c.get("outputs") for c in notebook["cells"]), "no outputs are committed"


def test_the_list_example_runs_and_resumes(tmp_path: Path) -> None:
    script = ROOT / "docs" / "examples" / "list_to_folder.py"
    said = run(sys.executable, script, "pictures", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.rstrip().endswith("3 made in pictures")
    again = run(sys.executable, script, "pictures", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert again.rstrip().endswith("0 made in pictures")


@pytest.mark.slow
def test_the_lora_example_runs(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for shade in range(3):
        Image.new("RGB", (128, 128), (80 * shade, 40, 200)).save(tmp_path / f"mine/{shade}.png")
    script, few = ROOT / "docs" / "examples" / "lora.py", ("--steps", "1", "--student-steps", "1")
    said = run(sys.executable, script, "mine", *few, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.rstrip().endswith("zorb.png") and (tmp_path / "zorb.safetensors").is_file()


def test_help_shows_the_public_face_first() -> None:
    import tiue_core

    text = pydoc.plain(pydoc.render_doc(tiue_core))
    start = text[:2500]
    for name in ("TiuePipeline", "OneWaySchedule", "SplitUNet", "draw_noise"):
        assert name in start
    assert "_Moved" not in text and "class TiuePipeline" in text


@pytest.mark.slow
def test_api_pages_are_built(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    run(ROOT / "scripts" / "docs", tmp_path / "api", cwd=ROOT, **environment)
    page = (tmp_path / "api" / "tiue_core" / "pipelines" / "base.html").read_text(encoding="utf-8")
    assert "TiuePipeline" in page and "guidance_scale" in page
