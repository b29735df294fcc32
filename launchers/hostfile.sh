#!/usr/bin/env bash
# A run over the GPUs of several machines that reach each other by ssh, through DeepSpeed and pdsh.
#
#   launchers/hostfile.sh HOSTFILE launch --check --output runs/first
#   launchers/hostfile.sh HOSTFILE train run.yaml [FIELD=VALUE]...
#
# HOSTFILE has a line a machine, as in "node1 slots=8". All of them see this folder at the same path.
# A run that crashes goes on from its last state, SCALEPET_RESTARTS (3) times at most; a refusal (exit
# code 2) would only come again. Ctrl-C, SIGTERM and SIGUSR1 let it save its state and end with exit
# code 75; a second one ends it at once.
set -uo pipefail
# shellcheck source=site.sh
source "$(dirname "${BASH_SOURCE[0]}")/site.sh"

hostfile="${1:?usage: launchers/hostfile.sh HOSTFILE train run.yaml}"
shift
# pdsh waits for ever for a host that does not answer.
python -m scalepet launch --check --hostfile "$hostfile" || exit

# What the other machines are to know besides. Everybody there can read it: no keys.
DS_ENV_FILE="$(mktemp)"
trap 'rm -f "$DS_ENV_FILE"' EXIT
env | grep -E '^(PATH|LD_LIBRARY_PATH|(NCCL|GLOO|OMP|HF|DS|DEEPSPEED|TOKENIZERS|WANDB|SCALEPET)_[A-Z_]+)=' |
  grep -vE '_(TOKEN|KEY)=' >"$DS_ENV_FILE"
export DS_ENV_FILE PDSH_RCMD_TYPE=ssh
# Says within a minute which machine has fallen silent; DEEPSPEED_TIMEOUT (site.sh) then ends the run.
export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=3"

resume=()
[[ "${1:-}" =~ ^(train|continual)$ ]] && resume=(--resume)
port="${MASTER_PORT:-$((12000 + $$ % 20000))}"
hosts="$(awk '!/^[[:space:]]*(#|$)/ { print $1 }' "$hostfile" | paste -sd,)"
# To the ranks alone: a signal to DeepSpeed's launchers would cut their connections.
launcher="^[^ ]*python[^ ]* -u -m deepspeed.launcher.launch .*--master_port=$port"
set -m # Ctrl-C, too, does not reach the launchers
is_first=1
stop() {
  stopped=1
  if [[ -n "$is_first" ]]; then
    pdsh -w "$hosts" "pkill -USR1 -P \$(pgrep -d, -f '$launcher')" </dev/null
  else
    kill "$run"
  fi
  is_first=
}
trap stop INT TERM USR1

for ((restart = 0; ; restart++)); do
  deepspeed --hostfile "$hostfile" --master_port "$port" --log_level error \
    --module scalepet "$@" "${resume[@]}" </dev/null &
  run=$!
  while :; do # a signal ends the wait, not the run
    stopped=
    wait "$run"
    code=$?
    [[ -n "$stopped" ]] || break
  done
  case $code in 0 | 2 | 75) exit "$code" ;; esac
  echo "scalepet: the run failed with exit code $code after $restart restarts" >&2
  ((restart < ${SCALEPET_RESTARTS:-3})) || exit "$code"
done
