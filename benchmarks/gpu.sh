#!/usr/bin/env bash
# The one command for a machine with a GPU: all sections, or the one that is named.
#
#   build   compiles the fused loss (ds-train build)
#   tests   its tests that need a GPU
#   train   every stage, dtype and offload with the same losses (gpu.py)
#   loss    the fused loss against what else computes it (loss_gpu.py), with its arguments:
#           bash benchmarks/gpu.sh loss --heads llama3-8b
#
# Each section fits into ten minutes. Peers of `loss` are those that are installed:
#   pip install liger-kernel cut-cross-entropy quack-kernels trl
# PYTHON names the interpreter (.venv/bin/python), RESULTS the folder of results.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
results=${RESULTS:-benchmarks/results}
section=${1:-all}
[ $# -gt 0 ] && shift
mkdir -p "$results"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv

build() { "$python" -m ds_train build "$@"; }
tests() { "$python" -m pytest tests/ops -k cuda "$@"; }
train() { "$python" benchmarks/gpu.py "${@:-$results/gpu.md}"; }
loss() { "$python" benchmarks/loss_gpu.py --output "$results/loss_gpu.md" "$@"; }

case $section in
    build | tests | train | loss) "$section" "$@" ;;
    all)
        failed=()
        for each in build tests train loss; do
            echo "== $each"
            "$each" || failed+=("$each")
        done
        [ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
        ;;
    *)
        echo "gpu.sh: no section '$section': build, tests, train, loss or all" >&2
        exit 2
        ;;
esac
