#!/usr/bin/env bash
# One sitting on a GPU, in at most 8 minutes: benchmarks/gpu/sitting.sh [--tiny] [FOLDER]
#
# Each part has a time limit and writes each result at once, so an interruption loses no result. Parts in order:
# the GPU's tests; steps at batch 1, 2, 4, 8 (the recipe, without and with our kernels), then with
# torch.compile in place of our kernels; several styles; a whole job, cold and warm; a step's kernels.
# --tiny runs a short form of each part on a CPU, in at most 15 minutes, with fewer tests and one compilation.
# PYTHON names the interpreter, whose torch must fit the GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
where=(--device cuda) seconds=2 epochs=200 tests=() compiled="1 8" tiny=
if [ "${1:-}" = --tiny ]; then
  where=(--tiny --device cpu) seconds=0.1 epochs=1 tests=(-k "geglu or bias_add") compiled=1 tiny=yes
  shift
fi
out=${1:-benchmarks/results/sitting}
mkdir -p "$out"
: > "$out/summary.txt"

part() { # NAME SECONDS TINY_SECONDS COMMAND...: run COMMAND for at most SECONDS, and record its exit status
  local name=$1 limit=${tiny:+$3} began=$SECONDS
  limit=${limit:-$2}
  shift 3
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.txt" 2>&1
  echo "$name: exit $? after $((SECONDS - began)) s of $limit" | tee -a "$out/summary.txt"
}
steps() { # NAME SECONDS TINY_SECONDS WAYS BATCHES: steps/s of some ways to run a step
  part "$1" "$2" "$3" "$python" -m benchmarks.gpu "${where[@]}" --parts speed --seconds "$seconds" \
    --ways $4 --batches $5 --json "$out/$1.json"
}

part tests 110 60 "$python" -m pytest -q -m "gpu or kernels" "${tests[@]}" tests/diffusion
steps steps 80 150 "recipe channels-last kernels" "1 2 4 8"
steps steps-compiled 110 400 compiled "$compiled"
part styles 45 150 "$python" -m benchmarks.gpu "${where[@]}" --parts styles --styles 1 4 8 \
  --seconds "$seconds" --json "$out/styles.json"
part job 105 90 "$python" -m benchmarks.gpu "${where[@]}" --parts job --epochs "$epochs" \
  --json "$out/job.json"
part kernels 30 50 "$python" -m benchmarks.gpu.kernels "${where[@]}" --batches 1
