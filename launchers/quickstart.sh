#!/usr/bin/env bash
# From a fresh machine to a trained adapter: real pretrained weights, real text, ZeRO-3 over all GPUs
# of this machine, or over two CPU processes where it has none. About 7 minutes on 2 cores, the
# environment included.
#
#   bash launchers/quickstart.sh         a BERT learns to sort newsgroup postings
#   bash launchers/quickstart.sh --t5    a T5 learns to name the topic of a passage
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "") preset=bert model=minilm data=newsgroups ;;
  --t5) preset=t5 model=title-t5 data=wiki-topic ;;
  *) echo "usage: bash launchers/quickstart.sh [--t5]" >&2; exit 2 ;;
esac

bash launchers/environment.sh assets
PATH="$(cd "${SCALEPET_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH TOKENIZERS_PARALLELISM=false

scalepet assets "$model" "$data"

port="$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')"
launch=(deepspeed --master_port "$port" --log_level error)
cpus=()
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  # One thread a process: two processes share what is likely a laptop.
  cpus=(--num_accelerators 2)
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
train=(--module scalepet train "launchers/quickstart-$preset.yaml")
launch+=("${cpus[@]}" "${train[@]}")

run="runs/quickstart-$preset"
rm -rf "$run"
runs=("$run/apet")
"${launch[@]}" output="$run/apet"
if [[ "$preset" == bert ]]; then
  echo "The baseline: the same backbone and data, but only the head learns."
  "${launch[@]}" output="$run/head-only" "method={name: head}"
  runs+=("$run/head-only")
fi
scalepet report "${runs[@]}" --figure "$run/curves.png"

if [[ "$preset" == bert ]]; then
  text="the launch of the shuttle was delayed because of the weather at the cape"
else
  text="The Danube is the second-longest river in Europe, from the Black Forest to the Black Sea."
fi
printf '\n$ scalepet predict %s/apet --text "%s"\n' "$run" "$text"
scalepet predict "$run/apet" --text "$text"
cat <<END

Next: change launchers/quickstart-$preset.yaml or override any field of it, such as
  deepspeed ${cpus[*]} ${train[*]} output=runs/smaller method.budget=1000
and see all fields with: scalepet train --fields
END
