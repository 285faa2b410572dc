#!/usr/bin/env bash
# dynamicprompts 0.31.0: `{2$$1::a|3::b|1::c}` draws the second text with the weights of the wrong
# ones: after `c`, whose weight is also that of `a`, the weight of `a` is dropped, so `a` is drawn with
# the weight of `b` and `b` with that of `c`.
# Seen: (c, a) in 15 % and (c, b) in 5 % of draws, where 5 % and 15 % are asked for.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "dynamicprompts==0.31.0"
"$place/env/bin/python" -W ignore - <<'P'
from collections import Counter

from dynamicprompts.generators import RandomPromptGenerator

count = 4000
drawn = Counter(RandomPromptGenerator(seed=0).generate("{2$$1::a|3::b|1::c}", count))
for pair in ("a,b", "a,c", "c,a", "c,b"):
    print(f"dynamicprompts 0.31.0: {pair} {drawn[pair] / count:.3f}")
assert abs(drawn["a,b"] / count - 0.15) < 0.03 and abs(drawn["a,c"] / count - 0.05) < 0.02
assert abs(drawn["c,a"] / count - 0.15) < 0.03 and abs(drawn["c,b"] / count - 0.05) < 0.02, "changed"
P
