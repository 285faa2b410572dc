"""No function has more than eight parameters, but those that somebody outside dictates."""

from __future__ import annotations

import ast

from import_graph import ROOT

MOST = 8
#: Why these may have more; a command's options are found by their annotation.
EXEMPT = {
    **dict.fromkeys(
        (
            "tiue_core.pipelines.student.StudentPipeline.__init__",
            "tiue_core.pipelines.sdxl.TiueXLPipeline.__init__",
            "tiue_core.pipelines.base.TiuePipeline.__call__",
            "tiue_core.baselines.pipeline.SystemPipeline.__call__",
        ),
        "what diffusers' users expect of a pipeline",
    ),
    "tiue_core.optimize.optimize.optimize": "its settings, each by keyword, as torch.compile's",
    "tiue_core.core.unet.SplitUNet._context": "the arguments of diffusers' UNet",
    "tiue_core.app.api.api.generate": "Gradio makes the endpoint's fields of them",
    "tiue_core.app.train.train.run": "Gradio calls it with the values of the page's fields",
    "nodes.sample.OnePassSampler.execute": "ComfyUI calls it with a node's inputs",
    "nodes.native.notes.Guard.__call__": "ComfyUI calls its wrappers so",
}
ROOMS = ("tiue_core", "nodes", "webui", "scripts")


def _functions(node: ast.AST, home: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    for child in ast.iter_child_nodes(node):
        name = f"{home}.{getattr(child, 'name', '')}".rstrip(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            found[name] = child
        found |= _functions(child, name)
    return found


def _of_a_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer reads its parameters off: options that the command line has."""
    return "typer." in ast.unparse(function.args)


def test_no_function_has_more_than_eight_parameters() -> None:
    many: dict[str, int] = {}
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        home = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, function in _functions(tree, home).items():
            args = function.args
            own = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
            count = len([arg for arg in own if arg not in ("self", "cls")])
            if count > MOST and not _of_a_command(function):
                many[name] = count
    assert set(many) == set(EXEMPT), many
