#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, shell scripts, tests.
# Arguments go to pytest:  tests/run.sh -k floors      tests/run.sh -m "not assets"
#
# GPUs of the machine are hidden, and an emulated one stands in (tests/emulated_cuda/README.md). Only
# tests/run.sh -m gpu runs the tests that want one where a real one is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launchers/environment.sh test,assets
PATH="$(cd "${SCALEPET_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH

ruff check .
ruff format --check .
mypy
find launchers tests .ci -name '*.sh' -exec shellcheck .ci/run {} +

# Nothing of the user's own is read or written: no login, no cache, no half-compiled DeepSpeed op.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export HF_HOME="$scratch/huggingface" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export TORCH_EXTENSIONS_DIR="$scratch/torch_extensions"
export WANDB_MODE=offline WANDB_SILENT=true
export WANDB_CACHE_DIR="$scratch/wandb" WANDB_CONFIG_DIR="$scratch/wandb" WANDB_DATA_DIR="$scratch/wandb"
unset WANDB_API_KEY

# Several processes share the cores in the distributed tests; more threads each only slow them down.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export TRITON_INTERPRET=1  # kernels are defined while Python imports; gpu.sh compiles them

on=()
SCALEPET_EMULATED_CUDA="$(python tests/emulated_cuda/build.py)"
if [[ -n "$SCALEPET_EMULATED_CUDA" ]]; then export SCALEPET_EMULATED_CUDA; fi
if [[ " $* " != *" -m gpu "* ]]; then
  export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu
elif [[ -n "$SCALEPET_EMULATED_CUDA" ]]; then
  on=(bash tests/emulated_cuda/on.sh)
fi

# Two at a time: many tests wait for processes to start and end. A file stays together, for its fixtures.
"${on[@]}" python -m pytest -n 2 --dist loadfile "$@"
