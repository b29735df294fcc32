# shellcheck shell=bash
# What differs between clusters; every launcher reads this file before it starts a run.

# module purge && module load cuda/12.6 python/3.12

# The network interface that reaches the other nodes, where NCCL or gloo pick a wrong one
# (ip -brief address shows them all):
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# How many minutes a rank waits for a machine that has fallen silent; one that ends is noticed at once.
# Not less than rank 0 needs to read a checkpoint:
# export DEEPSPEED_TIMEOUT=30

# The environment that launchers/environment.sh has made:
venv="${SCALEPET_VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}"
if [[ ! -x "$venv/bin/python" ]]; then
  echo "scalepet: there is no Python environment in $venv; try: bash launchers/environment.sh" >&2
  exit 2
fi
PATH="$(cd "$venv" && pwd)/bin:$PATH"
# PYTHONSAFEPATH: a yaml.py in the folder where a run starts is a stranger's file, and no module.
export PATH PYTHONSAFEPATH=1 TOKENIZERS_PARALLELISM=false

# Rows differ in length: what one step has freed is of use to a longer one. Two names, for torch up to
# 2.8 and from 2.9 on.
if [[ ! -v PYTORCH_ALLOC_CONF && ! -v PYTORCH_CUDA_ALLOC_CONF ]]; then
  export PYTORCH_ALLOC_CONF=expandable_segments:True
  export PYTORCH_CUDA_ALLOC_CONF="$PYTORCH_ALLOC_CONF"
fi
