"""The ComfyUI pack, without ComfyUI: what its files may and may not do, and what goes with them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from helpers_hosts import ROOT, imported_roots, installed, loaded

SOURCES = [ROOT / "__init__.py", ROOT / "install.py", *sorted((ROOT / "nodes").rglob("*.py"))]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def test_the_root_is_importable_on_its_own() -> None:
    """As pytest would, from a folder whatever its name: nothing of ComfyUI is touched."""
    module = loaded(ROOT / "__init__.py", "root_init", package="")
    assert module.WEB_DIRECTORY == "./web"
    assert not hasattr(module, "NODE_CLASS_MAPPINGS")  # it would hide comfy_entrypoint


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_registry_forbids(path: Path) -> None:
    roots = imported_roots(path)
    assert "tiue_core" not in roots, f"{path}: import tiue_core relatively"
    if path.parent != ROOT:
        assert "nodes" not in roots, f"{path}: 'nodes' is ComfyUI's own module"


def test_diffusers_is_imported_by_no_node_file() -> None:
    """Its import takes longer than all nodes together may: only ``native`` has it."""
    for path in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom):
                assert not (statement.level == 1 and (statement.module or "").startswith("native"))
                assert statement.level or not (statement.module or "").startswith("diffusers")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_whole(path: Path) -> None:
    """Every link is known at both of its ends, and there is a thumbnail."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["link"] == link
    linked = {s["link"] for n in nodes.values() for s in n["inputs"] if s["link"] is not None}
    assert linked == {link[0] for link in workflow["links"]}
    assert path.with_suffix(".jpg").is_file(), "run tests/comfyui/pictures.py"


def test_install_checks_and_installs_nothing(tmp_path: Path) -> None:
    result = installed(tmp_path / "custom_nodes" / "tiue")
    assert result.returncode == 1
    assert "diffusers is missing: pip install 'diffusers>=" in result.stdout
    assert (tmp_path / "models" / "tiue").is_dir()


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_language_names_all_that_english_names(language: str) -> None:
    """Nodes, descriptions, inputs and outputs; a tooltip that is missing is shown in English."""
    folder = ROOT / "locales"
    english, other = (
        json.loads((folder / each / "nodeDefs.json").read_text(encoding="utf-8"))
        for each in ("en", language)
    )
    assert other.keys() == english.keys()
    for node, given in english.items():
        for key in ("display_name", "description"):
            assert other[node][key] and other[node][key] != given[key], f"{node}.{key}"
        for kind in ("inputs", "outputs"):
            assert other[node].get(kind, {}).keys() == given.get(kind, {}).keys(), node
            assert all(each["name"] for each in other[node].get(kind, {}).values()), node
    assert (folder / language / "main.json").is_file()
