#!/usr/bin/env bash
# Runs a command on the emulated CUDA device:
#
#   bash tests/emulated_cuda/on.sh scalepet train run.yaml
#
#   SCALEPET_EMULATED_GPUS   how many GPUs the machine shows (default: 2)
#   SCALEPET_VENV            the environment that has scalepet (default: .venv in the repository root)
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${SCALEPET_VENV:-$here/../../.venv}"

SCALEPET_EMULATED_CUDA="$("$venv/bin/python" "$here/build.py")"
if [[ -z "$SCALEPET_EMULATED_CUDA" ]]; then
  echo "scalepet: the emulated device wants a CPU build of torch, and this one is for GPUs" >&2
  exit 2
fi
export SCALEPET_EMULATED_CUDA SCALEPET_EMULATED_GPUS="${SCALEPET_EMULATED_GPUS:-2}"
export PYTHONPATH="$here/start:$here/..${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$venv/bin:$PATH" TRITON_INTERPRET=1
unset CUDA_VISIBLE_DEVICES DS_ACCELERATOR
exec "$@"
