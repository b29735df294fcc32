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
gpus="$(python -m scalepet launch --gpus)" || exit
if ((${gpus:-0})); then
  devices="${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((gpus - 1)))}"
else
  processes="${PROCESSES:-2}"
  if [[ ! "$processes" =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "scalepet: PROCESSES is '$processes'; allowed: a whole number from 1 on" >&2
    exit 2
  fi
  devices="$(seq -s , 0 $((processes - 1)))"
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
world="$(printf '{"localhost": ["%s"]}' "${devices//,/\", \"}" | base64 -w 0)"

# Not through "deepspeed", which ends with 0 where this launcher of its was killed. The launcher would
# end at a signal and leave the ranks behind, so a signal goes to the ranks alone.
set -m # Ctrl-C, too, does not reach the launcher
python -u -m deepspeed.launcher.launch --world_info="$world" --master_addr=127.0.0.1 \
  --master_port="$port" --log_level=error --module scalepet "$@" &
run=$!
ranks=(-g "$run" -f -- "-m scalepet --local_rank=")
is_first=1
# shellcheck disable=SC2329  # the trap calls it
stop() {
  stopped=1
  if [[ -z "$is_first" ]] || ! pkill -USR1 "${ranks[@]}"; then
    kill "$run" # which may have started nothing yet
  fi
  is_first=
}
trap stop INT TERM USR1
while :; do # a signal ends the wait, not the run
  stopped=
  wait "$run"
  code=$?
  [[ -n "$stopped" ]] || break
done

# Ranks whose launcher was killed notice it, save their state and end.
for ((seconds = 0; seconds < 60; seconds++)); do
  pgrep "${ranks[@]}" >/dev/null || exit "$code"
  sleep 1
done
pkill -KILL "${ranks[@]}"
exit "$code"
