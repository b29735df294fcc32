#!/usr/bin/env bash
# Continual learning (LAE) on real weights and data: the same stream with and without LAE, over all
# GPUs of this machine, or over two CPU processes where it has none.
#
#   bash launchers/stream.sh               a BERT learns 20 newsgroups, four at a time
#   bash launchers/stream.sh --pictures    a ViT learns ten digits, two at a time
#   bash launchers/stream.sh --orders 3    in three orders of the classes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=text model=minilm data=newsgroups orders=1
while (($#)); do
  case "$1" in
    --pictures) preset=pictures model=focus-vit data=mnist ;;
    --orders) orders="${2:?--orders needs a number}"; shift ;;
    *) echo "usage: bash launchers/stream.sh [--pictures] [--orders N]" >&2; exit 2 ;;
  esac
  shift
done

bash launchers/environment.sh assets
PATH="$(cd "${SCALEPET_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH PYTHONSAFEPATH=1 TOKENIZERS_PARALLELISM=false

scalepet assets "$model" "$data"

learn=(launchers/local.sh continual "launchers/stream-$preset.yaml" --orders "$orders")
run="runs/stream-$preset"
rm -rf "$run"
bash "${learn[@]}" output="$run/lae"
echo "The same without LAE: one method after the other experience, nothing frozen, no copies."
bash "${learn[@]}" output="$run/naive" "lae={freeze_epochs: 0, offline: []}" method.calibrated=false
scalepet report "$run/lae" "$run/naive" --figure "$run/curves.png"
