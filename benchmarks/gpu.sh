#!/usr/bin/env bash
# The one command for a machine with a GPU; see gpu.py. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
exec "$python" benchmarks/gpu.py "$@"
