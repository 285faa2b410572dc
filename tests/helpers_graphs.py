"""Graphs made by hand: what ``tiue export`` writes, with next to nothing inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CHANNELS, TOKENS = 8, 4, 6


def about(**changes: Any) -> dict[str, Any]:
    """A description as in ``tiue_core.export.metadata``, of a student of 8 x 8 pixels."""
    return {
        "format": 1,
        "student": "by hand",
        "student_revision": None,
        "student_hash": "0" * 64,
        "licence": "none",
        "loras": [],
        "steps": None,
        "decoders": "exact",
        "draft": False,
        "timesteps": [999],
        "dtype": "float32",
        "channels": CHANNELS,
        "factor": 1,
        "height": SIDE,
        "width": SIDE,
        "dynamic_size": False,
        "multiple": 2,
        "smallest": 4,
        "largest": 32,
        "whole": True,
        **changes,
    }


def write_graph(
    path: Path, description: Any = None, *, external: bool = False, opset: int = 18, ir: int = 9
) -> Path:
    """A graph whose picture is the sigmoid of the noise's first three channels, tinted by words."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"?": 0, "cat": 1, "dog": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_truncation(TOKENS)
    words.enable_padding(length=TOKENS, pad_id=0, pad_token="?")
    tint = np.linspace(-0.1, 0.1, 3 * 1024, dtype=np.float32).reshape(1, 3, 1024)
    constants = {
        "tint": tint,
        "starts": np.array([0]),
        "ends": np.array([3]),
        "axes": np.array([1]),
        "last": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Identity", ["noise"], ["latents"]),
        helper.make_node("Slice", ["noise", "starts", "ends", "axes"], ["colours"]),
        helper.make_node("ReduceMean", ["tint", "axes"], ["grey"], keepdims=1),
        helper.make_node("ReduceMean", ["grey", "two"], ["one"], keepdims=0),
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=1),
        helper.make_node("Unsqueeze", ["mean", "last"], ["shade"]),
        helper.make_node("Add", ["colours", "shade"], ["shaded"]),
        helper.make_node("Add", ["shaded", "one"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["image"]),
    ]
    constants["two"] = np.array([2])
    batch, area = ["batch"], ["batch", CHANNELS, "rows", "columns"]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [*batch, TOKENS]),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, area),
        ],
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, None, None]),
            helper.make_tensor_value_info("latents", TensorProto.FLOAT, area),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    stored = {"tokenizer.json": words.to_str()}
    if description is not False:
        text = description if isinstance(description, str) else json.dumps(description or about())
        stored["tiue"] = text
    helper.set_model_props(model, stored)
    outside = {
        "save_as_external_data": True,
        "location": path.name + ".data",
        "size_threshold": 1024,
    }
    onnx.save(model, str(path), **(outside if external else {}))
    return path
