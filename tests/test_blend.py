"""A student between two: weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import helpers_students as helpers
import pytest
import torch

from tiue_core import TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.train.blend import blend


def test_a_student_between_two(tmp_path: Path) -> None:
    one = helpers.make_student(tmp_path / "one")
    pipe = TiuePipeline.from_pretrained(one)
    first = {name: w.clone() for name, w in pipe.unet.state_dict().items()}
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.add_(torch.randn_like(weight))
    pipe.save_pretrained(tmp_path / "other")
    blend(one, tmp_path / "other", 0.25, tmp_path / "between")
    made = TiuePipeline.from_pretrained(tmp_path / "between").unet.state_dict()
    for name, weight in pipe.unet.state_dict().items():
        torch.testing.assert_close(made[name], 0.75 * first[name] + 0.25 * weight)


def test_what_is_no_neighbour_is_refused(tmp_path: Path) -> None:
    one = helpers.make_student(tmp_path / "one")
    other = helpers.make_student(tmp_path / "other", linear=True)
    with pytest.raises(TiueError, match="different layouts"):
        blend(one, other, 0.5, tmp_path / "out")
    with pytest.raises(TiueError, match="from 0 to 1"):
        blend(one, one, 1.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
