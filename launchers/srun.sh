#!/usr/bin/env bash
# One process a GPU over all nodes of a SLURM allocation; the nodes need no ssh.
#
#   launchers/srun.sh launch --check --output runs/first       in a salloc or sbatch
#   launchers/srun.sh train run.yaml [FIELD=VALUE]...
#
# The allocation says how many: --nodes=2 --gpus-per-node=8 --ntasks-per-node=8. Each process sees all
# GPUs of its node, as NCCL wants it, and takes the one of its LOCAL_RANK.
set -euo pipefail

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  echo "scalepet: there is no SLURM allocation here; allowed: sbatch launchers/slurm-job.sh, or" \
    "launchers/interactive.sh" >&2
  exit 2
fi
# shellcheck source=site.sh
source "$(dirname "${BASH_SOURCE[0]}")/site.sh"

nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export MASTER_ADDR="${nodes%%$'\n'*}"
[[ "$nodes" == *$'\n'* ]] || MASTER_ADDR=127.0.0.1 # where no other machine reaches it
# Jobs that share a node meet at different ports, below those that systems hand out.
export MASTER_PORT="${MASTER_PORT:-$((12000 + SLURM_JOB_ID % 20000))}"
# Since 22.05 srun does not take it over from the allocation.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"

# In a container: srun --container-image=IMAGE --container-mounts="$PWD" (pyxis) below, or
# "apptainer exec --nv IMAGE" before python.
# A minute after the first rank has ended, well or not, the others are killed: long enough for their
# own words and exit codes, and for ranks that start later to find the same fault.
# shellcheck disable=SC2016  # expanded by each task
exec srun --gpu-bind=none --kill-on-bad-exit=0 --wait="${SCALEPET_WAIT_SECONDS:-60}" bash -c '
  export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
  exec python -m scalepet "$@"' scalepet "$@"
