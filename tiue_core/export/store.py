"""A traced program to a file: ONNX with its weights as small as they go, or torch.export's .pt2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import TiueError
from .sessions import need
from .trace import Traced

_INLINE = 1_500_000_000  # bytes; protobuf stops at 2 GiB, so what is larger lies beside the graph


def save_pt2(graph: Traced, program: Any, path: Path, stored: dict[str, str]) -> None:
    """torch.export's own format, ``stored`` in its extra files."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # whose machine it was
    torch.export.save(program, path, extra_files=stored)


def save_onnx(graph: Traced, program: Any, path: Path, stored: dict[str, str]) -> None:
    """ONNX, ``stored`` in its metadata; more than 1.5 GB of weights in a second file."""
    import onnx_ir

    names = []
    for name, value in graph.inputs.items():
        listed = isinstance(value, list)
        names += [f"skip_{i}" for i in range(len(value))] if listed else [name]
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=graph.outputs, verbose=False
    )
    assert onnx is not None
    model = onnx.model
    _name_axes(model)
    _store_in_half(model)
    _forget_where(model)
    model.metadata_props.update(stored)
    model.producer_name = "tiue"
    size = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    )
    external = f"{path.name}.data" if size > _INLINE else None
    onnx_ir.save(model, path, external_data=external)


def save_openvino(graph: Traced, program: Any, path: Path, stored: dict[str, str]) -> None:
    """OpenVINO's own format, ``path`` and a .bin of weights; ``stored`` in its metadata."""
    openvino = need("openvino")
    onnx = path.with_suffix(".onnx")
    save_onnx(graph, program, onnx, {})
    model = openvino.Core().read_model(str(onnx))
    model.set_rt_info(json.dumps(stored), "tiue")
    openvino.save_model(model, str(path), compress_to_fp16=False)
    del model
    for file in path.parent.glob(f"{onnx.name}*"):
        file.unlink()


def onnx_description(path: Path) -> dict[str, str]:
    """What ``save_onnx`` stored in a file's metadata."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {each.key: each.value for each in model.metadata_props}


def _forget_where(model: Any) -> None:
    """Without the tracer's notes at each node: line for line of code, in the folders of whoever
    exported it, and as many bytes as a small network has weights."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            for one in (node, *node.outputs):
                one.metadata_props.clear()
                one.doc_string = None


def _name_axes(model: Any) -> None:
    """The batch axis by its name instead of the tracer's symbol."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])


def _store_in_half(model: Any) -> None:
    """Keep in half precision what half precision holds to the last bit, and widen it on loading.

    A student trained or shipped in float16 is then half the size, and the graph computes the same:
    onnxruntime folds the casts when it loads.
    """
    import onnx_ir

    graph, casts = model.graph, []
    for name, value in list(graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < 256:
            continue
        full = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        narrow = onnx_ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
            const_value=onnx_ir.tensor(half, name=f"{name}.half"),
        )
        cast = onnx_ir.node("Cast", [narrow], attributes={"to": onnx_ir.DataType.FLOAT})
        del graph.initializers[name]
        value.replace_all_uses_with(cast.outputs[0])
        graph.register_initializer(narrow)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def need_onnx() -> None:
    """Ask for the packages before a model is traced, which takes a while."""
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TiueError(
            f"{error.name} is not installed: pip install 'tiue[export]' to export to ONNX"
        ) from None
