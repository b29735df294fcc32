#!/usr/bin/env bash
# A shell in a SLURM allocation, where runs start at once and as often as you like.
#
#   launchers/interactive.sh [OPTIONS OF salloc]
#   launchers/srun.sh train run.yaml             in that shell
#
# Change these three lines, or give other options behind the command:
options=(
  --partition=gpu --account=my-project
  --nodes=1 --gpus-per-node=2 --ntasks-per-node=2 --cpus-per-task=8
  --time=01:00:00
)
exec salloc "${options[@]}" "$@"
