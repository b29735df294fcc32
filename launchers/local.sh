#!/usr/bin/env bash
# A run over all GPUs of this machine, or over PROCESSES (2) processes where it has none.
#
#   launchers/local.sh train run.yaml [FIELD=VALUE]...
#
# Ctrl-C, SIGTERM and SIGUSR1 let the run save its state and end with exit code 75; a second one ends
# it within 30 s.
set -uo pipefail
# shellcheck source=site.sh
source "$(dirname "${BASH_SOURCE[0]}")/site.sh"

# Runs on one machine meet at different ports.
port="$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')"
launch=(deepspeed --master_port "$port" --log_level error)
gpus="$(python -m scalepet launch --gpus)" || exit
if ((${gpus:-0} == 0)); then
  launch+=(--num_accelerators "${PROCESSES:-2}")
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi

# DeepSpeed's launchers would end and leave the ranks behind, so a signal goes to the ranks alone.
set -m # Ctrl-C, too, does not reach the launchers
"${launch[@]}" --module scalepet "$@" &
run=$!
is_first=1
stop() {
  local launcher
  stopped=1
  if ! launcher="$(pgrep -P "$run")"; then
    kill "$run" # which has started nothing yet
  elif [[ -n "$is_first" ]]; then
    pkill -USR1 -P "$launcher"
  else
    kill "$launcher"
  fi
  is_first=
}
trap stop INT TERM USR1
while :; do # a signal ends the wait, not the run
  stopped=
  wait "$run"
  code=$?
  [[ -n "$stopped" ]] || exit "$code"
done
