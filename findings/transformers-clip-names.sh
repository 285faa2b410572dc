#!/usr/bin/env bash
# transformers 5.24.0 writes CLIPTextModel's weights without the prefix `text_model.` that earlier
# releases (to 5.5) ask for, and 4.57.6 then reads such a folder with every weight at random: a
# warning in its log, no error, other numbers each time. A text-to-image folder saved by one and
# loaded by the other paints other prompts.
# Seen: all 36 weights missing; two loads differ from what was saved, and from each other.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" numpy safetensors
"$place/env/bin/python" - "$place/clip" <<'P'
import sys
from transformers import CLIPTextConfig, CLIPTextModel, __version__

size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
CLIPTextModel(CLIPTextConfig(num_hidden_layers=2, **size)).save_pretrained(sys.argv[1])
print("written by transformers", __version__)
P
"$place/env/bin/pip" install -q "transformers==4.57.6"
"$place/env/bin/python" - "$place/clip" <<'P'
import sys
from safetensors.torch import load_file
from transformers import CLIPTextModel, __version__

saved = load_file(f"{sys.argv[1]}/model.safetensors")
models = []
for _ in range(2):
    model, report = CLIPTextModel.from_pretrained(sys.argv[1], output_loading_info=True)
    models.append({name.removeprefix("text_model."): w for name, w in model.named_parameters()})
    missing = len(report["missing_keys"])
    print(f"read by transformers {__version__}: {missing} of {len(models[-1])} weights missing")
    assert missing == len(models[-1]), "this has changed"
name = "encoder.layers.0.mlp.fc1.weight"
off = [float((a[name] - b).abs().max().detach()) for a, b in
       ((models[0], saved[name]), (models[1], saved[name]), (models[0], models[1][name]))]
print("first load off by {:.3f}, second by {:.3f}, one from the other by {:.3f}".format(*off))
assert min(off) > 0.01, "this has changed"
P
