"""Fixtures of the checks that run inside ComfyUI's own Python."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import Student, called


@pytest.fixture(scope="session")
def student() -> Student:
    return Student(Path(os.environ["TIUE_STUDENT"]))


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def nodes() -> SimpleNamespace:
    """The pack's nodes by id, each as a function that returns its outputs."""
    from tiue_pack.nodes import calls, lists, load, look, sample

    every = (*load.NODES, *sample.NODES, *calls.NODES, *look.NODES, *lists.NODES)
    ids = [node.GET_SCHEMA().node_id.removeprefix("TiUE") for node in every]
    return SimpleNamespace(**{key: called(node) for key, node in zip(ids, every, strict=True)})
