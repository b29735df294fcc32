#!/usr/bin/env bash
# The scaling study on real weights and real data: how few parameters, placed how arbitrarily, are
# enough? Stopped at any time, the same command goes on.
#
#   bash launchers/study.sh bert                    a BERT, three tasks
#   bash launchers/study.sh t5                      a T5, five tasks of five types
#   bash launchers/study.sh places                  one budget, placed in nine ways
#   bash launchers/study.sh cost                    seconds and memory up to 20 billion weights; wants a GPU with 80 GB
#   bash launchers/study.sh bert --processes 8      so many runs at a time, at most one a GPU; without
#                                                   options one a GPU, or one a core where there is none
#   bash launchers/study.sh bert --plan             how many runs, hours and bytes; nothing runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  bert | places) assets=(minilm newsgroups sentiment wordnet-supersense) ;;
  t5) assets=(title-t5 sentiment wordnet-kind wordnet-match typos wiki-describe) ;;
  cost) assets=(title-t5 newsgroups) ;;
  *) echo "usage: bash launchers/study.sh bert|t5|places|cost [OPTION of scalepet sweep]..." >&2; exit 2 ;;
esac
study="$1"
shift
if (($# == 0)); then
  # nproc by itself answers OMP_NUM_THREADS, which is 1 on many clusters.
  processes="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)"
  [[ "$study" != cost ]] || processes=1 # so that nothing else is measured with it
  set -- --processes "$processes"
fi

bash launchers/environment.sh assets
PATH="$(cd "${SCALEPET_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH PYTHONSAFEPATH=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

scalepet assets "${assets[@]}"
scalepet sweep "launchers/study-$study.yaml" "$@"
case " $* " in
  *" --plan "*) ;;
  *" --slurm "*) echo "once all jobs have ended: scalepet report studies/$study" ;;
  *) scalepet report "studies/$study" ;;
esac
