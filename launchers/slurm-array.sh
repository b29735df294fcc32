#!/usr/bin/env bash
# A study as one SLURM array: each line of a file is a run, which comes back by itself until it is done.
#
#   sbatch --array=1-"$(grep -c '' runs.txt)" launchers/slurm-array.sh runs.txt     ("%4" behind the
#                                                                 number: at most four at a time)
# A line is what follows "scalepet"; single or double quotes keep words together, a backslash before
# a quote stands outside of them:
#
#   train run.yaml output=runs/small "method={name: lora, r: 4}"
#
# scalepet sweep study.yaml --slurm writes such a file, a cell of the study a line, and submits it.
#
# Change these three lines; launchers/slurm-job.sh says more.
#SBATCH --partition=gpu --account=my-project
#SBATCH --nodes=1 --gpus-per-node=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --job-name=scalepet --output=%x-%A_%a.out --open-mode=append
set -euo pipefail

line="$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
if [[ -z "${line// /}" ]]; then
  echo "scalepet: $1 has no line $SLURM_ARRAY_TASK_ID, or an empty one; allowed: a run a line" >&2
  exit 2
fi
if ! split="$(xargs printf '%s\n' <<<"$line")"; then
  echo "scalepet: line $SLURM_ARRAY_TASK_ID of $1 cannot be read: $line; allowed: pairs of quotes, none inside another of its kind" >&2
  exit 2
fi
mapfile -t words <<<"$split"
exec bash launchers/slurm-job.sh "${words[@]}"
