#!/usr/bin/env bash
# A run as a SLURM job, which comes back by itself until the run is done.
#
#   sbatch launchers/slurm-job.sh train run.yaml [FIELD=VALUE]...     from the repository root
#
# Change these three lines; options on sbatch's own command line go before them:
#SBATCH --partition=gpu --account=my-project
#SBATCH --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=8
#SBATCH --time=24:00:00
#
# Two minutes before its time is up, and when it is pre-empted, the run saves its state and the job is
# queued again. So it is after a crash or a dead node, but not after more than SCALEPET_RESTARTS (3)
# of them in a row, and never after a refusal (exit code 2), which would only come again.
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --job-name=scalepet --output=%x-%j.out --open-mode=append
set -uo pipefail

if [[ ! -f launchers/srun.sh ]]; then
  echo "scalepet: $PWD has no launchers/srun.sh; allowed: sbatch in the repository root" >&2
  exit 2
fi
# The last task of an array has the number of the whole array.
job="$SLURM_JOB_ID"
[[ -z "${SLURM_ARRAY_JOB_ID:-}" ]] || job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
say() { printf '%(%F %T)T scalepet job %s: %s\n' -1 "$job" "$*"; }

max_failures="${SCALEPET_RESTARTS:-3}" restarts="${SLURM_RESTART_COUNT:-0}"
for number in "SCALEPET_RESTARTS $max_failures" "SLURM_RESTART_COUNT $restarts"; do
  if [[ ! "${number#* }" =~ ^(0|[1-9][0-9]{0,5})$ ]]; then
    say "${number%% *} is '${number#* }'; allowed: a whole number"
    exit 2
  fi
done

# A line for each start since the last one that went well; a dead node can leave no other note.
starts=".scalepet-$SLURM_JOB_ID.starts"
if { echo "$SLURM_JOB_NODELIST" >>"$starts"; } 2>/dev/null; then
  num_failures=$(($(wc -l <"$starts") - 1))
  say "start $restarts on $SLURM_JOB_NODELIST; failures in a row: $num_failures"
else
  num_failures="$max_failures" # as many as may be, since nobody can count them
  say "start $restarts on $SLURM_JOB_NODELIST; $PWD/$starts cannot be written, so a crash is not queued again"
fi
if ((num_failures > max_failures)); then
  rm "$starts"
  exit 1
fi

# A start where nothing is yet goes on from nothing.
resume=()
[[ "${1:-}" =~ ^(train|continual)$ ]] && resume=(--resume)
bash launchers/srun.sh "$@" "${resume[@]}" &
run=$!
# srun passes it on to every rank.
trap 'say "warned: saving"; warned=1; kill -USR1 "$run"' USR1 TERM
while :; do # a signal ends the wait, not the run
  warned=
  wait "$run"
  code=$?
  [[ -n "$warned" ]] || break
done

queue_again() {
  local state
  state="$(scontrol show job --oneliner "$job" | grep -o 'JobState=[A-Z_]*')"
  if [[ "$state" != JobState=RUNNING ]]; then
    say "not queued again: $state"
  elif scontrol requeue "$job"; then
    say "queued again"
  fi
}

if ((code == 75)); then
  rm -f "$starts"
  queue_again
elif ((code != 0 && code != 2 && num_failures < max_failures)); then
  say "failed with exit code $code"
  queue_again
else
  rm -f "$starts"
  say "ends with exit code $code"
fi
exit "$code"
