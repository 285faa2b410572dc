"""Checks that run inside ComfyUI's own Python: the numbers, against diffusers and TiuePipeline.

One process runs all that are chosen, since importing ComfyUI takes longer than most of them:

    pytest tests/comfyui/test_inside.py -k check_words --inside "same_seed and node"
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
from place import BUILT_IN, HERE, Comfy

CHECKS = sorted(path.stem for path in (HERE / "inside").glob("check_*.py"))
Failures = dict[str, str]  # by test


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, comfy: Comfy, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Failures]:
    """What failed in every file of checks that was chosen."""
    chosen = (getattr(item, "callspec", None) for item in request.session.items)
    checks = {spec.params.get("check") for spec in chosen if spec}
    report = tmp_path_factory.mktemp("inside") / "report.xml"
    command = [comfy.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--confcutdir", "."]
    command += ["--override-ini", "addopts=", "--junitxml", str(report)]
    words = request.config.getoption("--inside", default="")
    result = subprocess.run(
        [*command, "-k", words, *(f"{check}.py" for check in CHECKS if check in checks)],
        env={**comfy.environment, "TIUE_STUDENT": str(BUILT_IN)},
        cwd=HERE / "inside",
        capture_output=True,
        text=True,
    )
    assert result.returncode != 5, f"no check is named {words!r}"
    assert report.is_file(), result.stdout[-4000:] + result.stderr[-4000:]
    print(result.stdout[result.stdout.rfind("greatest difference") :])
    found: dict[str, Failures] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        check = case.get("classname", "").rpartition(".")[2]
        failures = found.setdefault(check, {})
        for trouble in (*case.findall("failure"), *case.findall("error")):
            failures[case.get("name", "")] = (trouble.text or "")[-3000:]
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(outcome: dict[str, Failures], check: str) -> None:
    assert check in outcome, f"{check} did not run"
    for name, trouble in outcome[check].items():
        print(f"--- {name}\n{trouble}")
    assert not outcome[check], f"{len(outcome[check])} failed: {', '.join(outcome[check])}"
