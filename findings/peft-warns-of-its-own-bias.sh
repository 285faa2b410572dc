#!/usr/bin/env bash
# peft 0.21.2: a LoRA with a bias of its own (`LoraConfig(lora_bias=True)`) is saved whole, and with it
# a warning that its biases "have invalid shape" and the save is incomplete, as of shards that were
# not gathered. They are vectors because a bias is one: what is read back is what was saved.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "peft==0.21.2" "torch==2.13.0" "safetensors==0.8.0"
"$place/env/bin/python" - "$place" <<'P'
import sys
import warnings
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

print("peft", peft.__version__, "torch", torch.__version__)


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8))


for bias in (False, True):
    config = LoraConfig(r=2, target_modules=["0"], lora_bias=bias, init_lora_weights=False)
    model = get_peft_model(base(), config)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.save_pretrained(Path(sys.argv[1]) / str(bias))
    told = [str(one.message) for one in said if "invalid shape" in str(one.message)]
    x = torch.ones(1, 8)
    again = PeftModel.from_pretrained(base(), Path(sys.argv[1]) / str(bias))
    off = (again(x) - model(x)).abs().max().item()
    print(f"lora_bias={bias}: {len(told)} warning of an invalid shape; read back off by {off:.1e}")
    assert len(told) == bias and off < 1e-6, "this has changed"
P
