#!/usr/bin/env bash
# One sitting on a GPU, in at most 8 minutes: benchmarks/gpu/sitting.sh [--tiny] [FOLDER]
#
# Each part has a time limit and writes each result at once, so an interruption loses no result. Parts in order:
# the GPU's tests; steps at batch 1, 2, 4, 8 (the recipe, without and with our kernels), then with
# torch.compile in place of our kernels; several styles; a whole job, cold and warm; a step's kernels.
# FOLDER gets results.json, compiled.json (torch.compile's steps), and log.txt, which has each part's output.
# --tiny runs a short form of each part on a CPU, in at most 15 minutes, with fewer tests and one compilation.
# PYTHON names the interpreter, whose torch must fit the GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
# Python keeps the bytecode of the libraries: else each part would spend seconds to compile it anew.
export PYTHONDONTWRITEBYTECODE=
export PYTHONUNBUFFERED=1 # a part that is stopped has written its output
export HF_HUB_OFFLINE=1   # nothing is downloaded, so nothing waits for a network
python=${PYTHON:-python3}
where=(--device cuda) seconds=2 epochs=200 batches="1 2 4 8" compiled="1 8" tiny=
tests=(-n 4 -k "not every_kernel_compiles") # that test compiles for other GPUs and runs anywhere
if [ "${1:-}" = --tiny ]; then
  where=(--tiny --device cpu) seconds=0.1 epochs=1 batches="1 8" compiled=1 tiny=yes
  tests=(-n 2 -k "geglu or bias_add")
  shift
fi
out=${1:-benchmarks/results/sitting}
mkdir -p "$out"
rm -f "$out"/{results,compiled,compiling}.json
: > "$out/log.txt"

part() { # NAME SECONDS TINY_SECONDS COMMAND...: run COMMAND for at most SECONDS, and record its exit status
  local name=$1 limit=${tiny:+$3} began=$SECONDS
  limit=${limit:-$2}
  shift 3
  echo "== $name" >> "$out/log.txt"
  # An interrupted pytest still prints why tests failed.
  timeout --signal=INT --kill-after=5 "$((limit - 5))" "$@" >> "$out/log.txt" 2>&1
  echo "$name: exit $? after $((SECONDS - began)) s of $limit" | tee -a "$out/log.txt"
}
bench=("$python" -m benchmarks.gpu "${where[@]}" --seconds "$seconds" --epochs "$epochs")
compile=("${bench[@]}" --parts speed --ways compiled)
# Only files with such tests are imported: other files need libraries that this machine may lack.
mapfile -t files < <(grep -lrE 'mark\.(gpu|kernels)\b' --include='*.py' tests)

# The compiler caches its results, so that most of the work is done when its steps are measured.
nice -n 19 timeout 80 "${compile[@]}" --batches 1 --json "$out/compiling.json" > /dev/null 2>&1 &
compiling=$!
part tests 80 60 "$python" -m pytest -q -m "gpu or kernels" "${tests[@]}" "${files[@]}"
{ kill "$compiling"; wait "$compiling"; } 2> /dev/null
rm -f "$out/compiling.json"
part steps 95 150 "${bench[@]}" --parts speed --ways recipe channels-last kernels --batches $batches \
  --json "$out/results.json"
part steps-compiled 95 400 "${compile[@]}" --batches $compiled --json "$out/compiled.json"
part styles 50 150 "${bench[@]}" --parts styles --styles 1 4 8 --json "$out/results.json"
part job 125 90 "${bench[@]}" --parts job --json "$out/results.json"
part kernels 35 50 "$python" -m benchmarks.gpu.kernels "${where[@]}" --batches 1
