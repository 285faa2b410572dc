#!/usr/bin/env bash
# What only a GPU can tell, within ten minutes: benchmarks/gpu.sh [OUT] [DEVICE] [SHAPE]
#
#   exact, fast, draft, the authors' algorithm, one-step and four-step models: text + UNet + VAE,
#   peak memory; images a second at batches 1 to 32; with CUDA graphs and without; torch.compile
#
# `benchmarks/gpu.sh out cpu stickers` tries the script itself where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu} device=${2:-cuda} shape=${3:-sd21}
python=${PYTHON:-python3}
batches=1,2,4,8,16,32
[ "$device" = cpu ] && batches=1,2
deadline=$((SECONDS + 600))
mkdir -p "$out"

run() {  # run NAME ARGUMENTS...: one table, in what is left of the ten minutes
  local name=$1 left=$((deadline - SECONDS))
  shift
  [ "$left" -gt 5 ] || { echo "$name: no time left"; return 1; }
  echo "== $name"
  timeout "$left" "$python" -m tiue_core bench --shape "$shape" --device "$device" \
    --out "$out/$name.json" "$@" || { echo "$name: failed or out of time"; return 1; }
}

systems=exact,fast,draft,authors,one-step,four-step
failed=0
run captured --systems "$systems" --rounds 10 --batches "$batches" || failed=1
run eager --systems exact,fast,one-step --rounds 10 --no-cuda-graphs || failed=1
run compiled --systems graph-eager,graph-compiled,pipeline --rounds 10 --graphs || failed=1
echo "figures: $out/*.json"
exit "$failed"
