"""What runs a graph: onnxruntime or OpenVINO, behind one call. No torch.

session = open_graph(path, "openvino", precision="bfloat16")
outputs = session({"noise": noise, ...})           # numpy in, numpy out, in the graph's order
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TiueError

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""onnxruntime's devices in the order in which they are preferred."""

SHAPES = 6  # shapes of inputs that OpenVINO keeps a compiled model for

Arrays = Mapping[str, np.ndarray]


class OnnxRuntime:
    """A graph in onnxruntime; computes in what the graph says.

    Raises:
        TiueError: see ``open_session``.
    """

    name = "onnxruntime"
    precisions = ("float32",)

    def __init__(self, path: Path, precision: str = "float32", threads: int | None = None) -> None:
        self.session, _ = open_session(path, "cpu", threads)

    def __call__(self, inputs: Arrays) -> list[np.ndarray]:
        return self.session.run(None, dict(inputs))

    @staticmethod
    def version() -> str:
        return version("onnxruntime")


class OpenVino:
    """A graph in OpenVINO on the CPU, compiled anew for every shape of its inputs: fixed shapes
    are planned and fused further than free ones.

    Args:
        precision: "float32", or "bfloat16" where the processor multiplies in it.

    Raises:
        TiueError: it is not installed, or cannot read the file.
    """

    name = "openvino"
    precisions = ("float32", "bfloat16")

    def __init__(self, path: Path, precision: str = "float32", threads: int | None = None) -> None:
        self.core = need("openvino").Core()
        able = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in able:
            raise TiueError("this processor does not multiply in bfloat16: ask for float32")
        self.path = _existing(path)
        self.settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads := threads or int(os.environ.get("OMP_NUM_THREADS") or 0):
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled: OrderedDict[tuple, Any] = OrderedDict()

    def __call__(self, inputs: Arrays) -> list[np.ndarray]:
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        key = tuple(sorted(shapes.items()))
        model = self._compiled.pop(key, None) or self._compile(shapes)
        self._compiled[key] = model
        while len(self._compiled) > SHAPES:
            self._compiled.popitem(last=False)
        return [np.array(each) for each in model(dict(inputs)).values()]

    def metadata(self) -> dict[str, str]:
        """What ``tiue export --to openvino`` wrote beside the network."""
        try:
            stored = self.core.read_model(str(self.path)).get_rt_info("tiue").astype(str)
            return {str(name): str(text) for name, text in json.loads(stored).items()}
        except (RuntimeError, ValueError, AttributeError):
            return {}

    def _compile(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        try:
            model = self.core.read_model(str(self.path))
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            return self.core.compile_model(model, "CPU", self.settings)
        except RuntimeError as error:
            first = (str(error).strip().splitlines() or [""])[-1][:200]
            raise TiueError(f"OpenVINO cannot run {self.path} ({first}): make it again") from error

    @staticmethod
    def version() -> str:
        return version("openvino")


ENGINES: dict[str, type[OnnxRuntime] | type[OpenVino]] = {
    "openvino": OpenVino,
    "onnxruntime": OnnxRuntime,
}


def installed() -> dict[str, str]:
    """The engines that this installation has, and their versions."""
    return {name: version(name) for name in ENGINES if find_spec(name) is not None}


def version(name: str) -> str:
    """An engine's version, read beside it: importing one that is not taken costs half a second.

    Raises:
        TiueError: it is not installed; says which extra brings it.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # under another name, such as onnxruntime-gpu
        return need(name).__version__


def need(name: str) -> Any:
    """An engine's package.

    Raises:
        TiueError: it is not installed; says which extra brings it.
    """
    try:
        return import_module(name)
    except ImportError:
        raise TiueError(f"{name} is not installed: pip install 'tiue[{name}]'") from None


def open_session(
    path: Path, device: str | None = None, threads: int | None = None
) -> tuple[Any, str]:
    """onnxruntime's session for a graph, and the device that it runs on.

    Args:
        device: a key of ``PROVIDERS``; by default the first that is there.
        threads: of a CPU; by default as many as ``OMP_NUM_THREADS`` says, as in PyTorch.

    Raises:
        TiueError: no such file, not a graph, data missing beside it, or no such device.
    """
    ort = need("onnxruntime")
    _existing(path)
    device = _device(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well, and told below
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    # A student is several sessions, one after the other. The threads of one that is done would spin
    # for a while, on the processors that the next one needs: half of the picture's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS["cpu"]]))
    try:
        return ort.InferenceSession(str(path), options, providers=providers), device
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise TiueError(_why_not(path, str(error))) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TiueError(f"{path} {what}: give a graph made by `tiue export`")
    return path


def _device(name: str | None, available: Sequence[str]) -> str:
    here = [device for device, provider in PROVIDERS.items() if provider in available]
    if name is None:
        return here[0]
    if name not in here:
        raise TiueError(f"onnxruntime has no device '{name}' here: use {' or '.join(here)}")
    return name


def _why_not(path: Path, reason: str) -> str:
    """onnxruntime's error as one line of ours."""
    named = re.search(r"[^\s\"'\[/\\]+\.onnx\.data", reason)  # whoever renamed the graph
    data = path.with_name(named[0] if named else path.name + ".data")
    if "xternal" in reason and not data.exists():
        return f"{path} keeps its weights in {data.name}, which is not beside it: copy it there"
    if "xternal" in reason or "out of bounds" in reason:
        return f"the weights in {data.name} are not those of {path}: copy both files again"
    if "pset" in reason or "IR_VERSION" in reason or "IR version" in reason:
        return f"{path} is from a newer exporter than this onnxruntime reads: update onnxruntime"
    return f"{path} is not a graph that onnxruntime can read: export it again"
