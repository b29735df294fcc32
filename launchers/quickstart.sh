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
export PATH PYTHONSAFEPATH=1 TOKENIZERS_PARALLELISM=false

scalepet assets "$model" "$data"

train=(launchers/local.sh train "launchers/quickstart-$preset.yaml")
run="runs/quickstart-$preset"
rm -rf "$run"
runs=("$run/apet")
bash "${train[@]}" output="$run/apet"
if [[ "$preset" == bert ]]; then
  echo "The baseline: the same backbone and data, but only the head learns."
  bash "${train[@]}" output="$run/head-only" "method={name: head}"
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
  bash ${train[*]} output=runs/smaller method.budget=1000
and see all fields with: scalepet train --fields
END
