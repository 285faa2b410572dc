"""The Train tab's run: what visitors may give it, and what comes out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tiue_core.app.state import ServerConfig, offered
from tiue_core.app.train import Training, gather, recipe_of
from tiue_core.errors import TiueError
from tiue_core.train.loop import Stopped


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    return SimpleNamespace(config=ServerConfig.of(offered(["stickers"]), train=tmp_path / "loras"))


@pytest.fixture
def uploads(tmp_path: Path) -> list[str]:
    """Three pictures, each in a folder of its own, as Gradio keeps them."""
    files = []
    for number in range(3):
        folder = tmp_path / f"upload{number}"
        folder.mkdir()
        Image.new("RGB", (128, 128), (80 * number, 100, 30)).save(folder / f"{number}.png")
        files.append(str(folder / f"{number}.png"))
    return files


def make(broker: Any, folder: Path, name: str = "My zorb", **changes: Any) -> Any:
    given = {"method": "transfer", "steps": 2, "student_steps": 1, "rank": 2, "alpha": 2, "seed": 0}
    recipe = recipe_of(broker, folder, name, " zorb ", "stickers", **{**given, **changes})
    return recipe.model_copy(update={"priors": 2, "batch_size": 1, "targets": ["to_k"]})


def test_what_is_trained_lies_where_the_owner_said(
    broker: Any, uploads: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    gather(uploads, folder)
    work = Training(make(broker, folder, "../../My zorb"))
    work.thread.join(120)
    assert work.error is None and work.done == work.total == len(work.losses) == 2
    assert work.recipe.out == broker.config.train / "my-zorb.safetensors"
    assert work.recipe.out.is_file() and Path(work.sample() or "").is_file()


def test_stopped_it_says_so(broker: Any, uploads: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    gather(uploads, folder)
    work = Training(make(broker, folder, steps=1000))
    work.stop()
    work.thread.join(120)
    assert isinstance(work.error, Stopped) and not work.recipe.out.exists()


def test_bad_uploads(broker: Any, uploads: list[str], tmp_path: Path) -> None:
    for given, message in (
        (None, "no pictures"),
        (uploads * 100, "300 files are too many"),
        (uploads * 2, r"two files are called 0\.png"),
    ):
        folder = tmp_path / str(len(given or ""))
        folder.mkdir()
        with pytest.raises(TiueError, match=message):
            gather(given, folder)
    with pytest.raises(TiueError, match="no name"):
        make(broker, tmp_path, " ")
    with pytest.raises(TiueError, match="no student"):
        recipe_of(broker, tmp_path, "a", "", "../x", steps=1)
    with pytest.raises(TiueError, match="rank"):
        make(broker, tmp_path, rank=0)
