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
max_restarts="${SCALEPET_RESTARTS:-3}"
if [[ ! "$max_restarts" =~ ^(0|[1-9][0-9]{0,5})$ ]]; then
  echo "scalepet: SCALEPET_RESTARTS is '$max_restarts'; allowed: a whole number" >&2
  exit 2
fi
# pdsh waits for ever for a host that does not answer.
python -m scalepet launch --check --hostfile "$hostfile" || exit

hosts="$(awk '!/^[[:space:]]*(#|$)/ { print $1 }' "$hostfile" | paste -sd,)"
# {"node1": [0, 1], "node2": [0, 1]}, as DeepSpeed's launcher wants to have it.
world="$(awk '
  !/^[[:space:]]*(#|$)/ {
    match($0, /slots=[0-9]+/)
    num_slots = substr($0, RSTART + 6, RLENGTH - 6)
    printf "%s\"%s\": [0", (num_hosts++ ? ", " : "{"), $1
    for (slot = 1; slot < num_slots; slot++) printf ", %d", slot
    printf "]"
  }
  END { printf "}" }' "$hostfile" | base64 -w 0 | tr +/ -_)"
port="${MASTER_PORT:-$((12000 + $$ % 20000))}"
if [[ "$hosts" == *,* ]]; then
  address="${MASTER_ADDR:-$(ssh -o BatchMode=yes "${hosts%%,*}" hostname -I </dev/null | awk '{ print $1 }')}"
else
  address=127.0.0.1 # where no other machine reaches it
fi
if [[ -z "$address" ]]; then
  echo "scalepet: ${hosts%%,*} has not said its address (hostname -I); MASTER_ADDR=... gives it" >&2
  exit 2
fi

# As one word for the far shell; pdsh itself reads %h and its like.
quoted() {
  local word="${1//\'/\'\\\'\'}"
  printf "'%s' " "${word//%/%%}"
}
# What the other machines are to know besides. Everybody there can read it: no keys.
known='^(PATH|LD_LIBRARY_PATH|PYTHON[A-Z0-9_]*)$'
known+='|^(NCCL|GLOO|OMP|CUDA|TORCH|PYTORCH|TRITON|HF|DS|DEEPSPEED|TOKENIZERS|WANDB|SCALEPET)_'
secret='(TOKEN|KEY|SECRET|PASS|PASSWORD|PASSWD|PWD|PAT|CREDENTIALS?)$'
far=""
for name in $(compgen -e | grep -E "$known" | grep -vE "$secret"); do
  far+="export $name=$(quoted "${!name}"); "
done
far+="cd $(quoted "$PWD")&& exec $(quoted "$(command -v python)")-u -m deepspeed.launcher.launch"
far+=" --world_info=$world --node_rank=%n --master_addr=$address --master_port=$port"
far+=" --log_level=error --module scalepet "
[[ "${1:-}" =~ ^(train|continual)$ ]] && set -- "$@" --resume
for word in "$@"; do
  far+="$(quoted "$word")"
done

export PDSH_RCMD_TYPE=ssh
# Says within a minute which machine has fallen silent; DEEPSPEED_TIMEOUT (site.sh) then ends the run.
export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=3"
on_hosts() { pdsh -S -f 1024 -w "$hosts" "$1" </dev/null; }
launcher="^[^ ]*python[^ ]* -u -m deepspeed.launcher.launch .*--master_port=$port"
set -m # Ctrl-C, too, does not reach the launchers
is_first=1
# To the ranks alone: a signal to DeepSpeed's launchers would cut their connections. They end their
# ranks at a second one.
stop() {
  stopped=1
  if [[ -n "$is_first" ]]; then
    on_hosts "pkill -USR1 -P \$(pgrep -d, -f '$launcher')"
  else
    on_hosts "pkill -f '$launcher'"
  fi
  is_first=
}
trap stop INT TERM USR1

for ((restart = 0; ; restart++)); do
  on_hosts "$far" &
  run=$!
  while :; do # a signal ends the wait, not the run
    stopped=
    wait "$run"
    code=$?
    [[ -n "$stopped" ]] || break
  done
  case $code in 0 | 2 | 75) exit "$code" ;; esac
  echo "scalepet: the run failed with exit code $code after $restart restarts" >&2
  if ((code == 128 + 9)); then # pdsh was killed, and the launchers know nothing of it
    timeout 60 pdsh -w "$hosts" "pkill -f '$launcher'; while pgrep -f '$launcher'; do sleep 1; done" </dev/null >/dev/null
  fi
  ((restart < max_restarts)) || exit "$code"
done
