#!/usr/bin/env bash
# The one command for a machine with a GPU: all sections, or the one that is named.
#
#   build   compiles the fused loss (ds-train build)
#   tests   its tests that need a GPU
#   train   every stage, dtype and offload with the same losses, and the quickstart (gpu.py)
#   loss    the fused loss against what else computes it (loss_gpu.py), with its arguments:
#           bash benchmarks/gpu.sh loss --heads llama3-8b
#
# Each section ends within ten minutes. `gpu.sh rehearse [SECTION]` runs the same on a CPU, with
# tiny sizes, and leaves its results in a temporary folder.
# PYTHON names the interpreter (.venv/bin/python, or python3), RESULTS the folder of results.
# Peers of `loss` are those that are installed: liger-kernel, cut-cross-entropy, trl, quack-kernels.
#
# Where nothing can be installed from the network, `build`, `tests` and `loss` do with a torch for
# CUDA, nvcc, g++, ninja, numpy, tqdm, pytest, hypothesis and peft. What is missing comes as wheels,
# made elsewhere for that Python (of deepspeed there is only the source, which is pure Python):
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -c constraints.txt -d wheels \
#       --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 liger-kernel trl ...
#   DS_BUILD_OPS=0 pip wheel --no-deps --no-build-isolation -w wheels deepspeed==0.19.8
# and there: pip install --no-index --no-deps --target site wheels/*.whl
#            PYTHONPATH=$PWD/site PYTHON=python3 bash benchmarks/gpu.sh loss
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
python=${PYTHON:-$python}
results=${RESULTS:-benchmarks/results}
on_cpu=
if [ "${1:-}" = rehearse ]; then
    on_cpu=yes
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    results=$(mktemp -d)
    shift
fi
section=${1:-all}
[ $# -gt 0 ] && shift

build() { "$python" -m ds_train build ${on_cpu:+--kind cpu} "$@"; }
tests() { "$python" -m pytest tests/ops -k cuda "$@"; }
train() { "$python" benchmarks/gpu.py --output "$results/gpu.md" ${on_cpu:+--quick} "$@"; }
loss() {
    "$python" benchmarks/loss_gpu.py --output "$results/loss_gpu.md" \
        ${on_cpu:+--device cpu --quick} "$@"
}

case $section in
    build | tests | train | loss | all) ;;
    *)
        echo "gpu.sh: no section '$section': build, tests, train, loss or all" >&2
        exit 2
        ;;
esac
"$python" -c 'import torch' || {
    echo "gpu.sh: $python has no torch; name another interpreter with PYTHON" >&2
    exit 2
}
mkdir -p "$results"
[ -z "$on_cpu" ] && command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
sections=("$section")
if [ "$section" = all ]; then
    [ $# -eq 0 ] || { echo "gpu.sh: all takes no arguments; name a section for: $*" >&2; exit 2; }
    sections=(build tests train loss)
fi
failed=()
for each in "${sections[@]}"; do
    echo "== $each"
    "$each" "$@" || failed+=("$each")
done
echo "results: $results"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
