#!/usr/bin/env bash
# comfy-cli 1.23.0: "Environment :: Console", a classifier of PyPI's own list, beside one of an
# accelerator. All accelerators are dropped; the command ends well and says that all checks passed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/env"
"$home/env/bin/pip" install -q "comfy-cli==1.23.0" "trove-classifiers==2026.9.21.13"
mkdir "$home/pack" && cd "$home/pack"
cat >pyproject.toml <<'T'
[project]
name = "some-nodes"
version = "1.0.0"
license = "MIT"
classifiers = ["Environment :: Console", "Environment :: GPU :: NVIDIA CUDA"]
[tool.comfy]
PublisherId = "somebody"
T
export HOME="$home" # its settings
"$home/env/bin/comfy" --skip-prompt --no-enable-telemetry node validate 2>&1 | tee "$home/said"
"$home/env/bin/python" - <<'P'
from comfy_cli.registry.config_parser import extract_node_configuration
from trove_classifiers import classifiers

assert "Environment :: Console" in classifiers
found = extract_node_configuration("pyproject.toml").project.supported_accelerators
print("accelerators that the registry is told of:", found)
assert found == []
P
grep -q "No accelerator information will be populated" "$home/said"
grep -q "All validation checks passed" "$home/said"
