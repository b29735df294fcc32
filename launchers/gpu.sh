#!/usr/bin/env bash
# What can be measured on one GPU, in six minutes and without a network; wants one with 140 GB.
#
#   bash launchers/gpu.sh [OPTION]... [PART]...        all parts, or these, in the order of their worth:
#
#   versions    the GPU, its driver, the libraries and compilers
#   tests       the tests that want a GPU
#   runs        eight tiny runs and a stream in one process: losses beside the CPU's, bytes left after each
#   xxl         T5-XXL, frozen, with LoRA and with APET, at 1,280 and 4,096 tokens: seconds, peak
#   ul2         UL2: one step, peak
#   zero3       T5-XXL on one rank of ZeRO-3
#   large       T5-large under the profiler: launches, busy share; then beside PEFT
#
#   --size tiny            every part at a size that any machine can do, also one without a GPU
#   --output FILE          where each part appends its lines of JSON (default: gpu.jsonl)
#   --wheelhouse FOLDER    wheels of what the machine lacks; launchers/README.md says how to make it
#   --seconds N            when to end (default: 360)
#
# PYTHON names the interpreter (default: that of .venv, else python3). A part that fails takes nothing
# from the others; the exit code is then 1.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

known=(versions tests runs xxl ul2 zero3 large)
size=full output=gpu.jsonl wheelhouse="${WHEELHOUSE:-}" limit=360 parts=()
refuse() {
  echo "scalepet: $1; try: head -22 launchers/gpu.sh" >&2
  exit 2
}
while (($#)); do
  case "$1" in
    --size | --output | --wheelhouse | --seconds)
      [[ -n "${2:-}" ]] || refuse "usage: $1 wants a value"
      case "$1" in
        --size) size="$2" ;;
        --output) output="$2" ;;
        --wheelhouse) wheelhouse="$2" ;;
        --seconds) limit="$2" ;;
      esac
      shift
      ;;
    *)
      [[ " ${known[*]} " == *" $1 "* ]] || refuse "usage: '$1' is no part; allowed: ${known[*]}"
      parts+=("$1")
      ;;
  esac
  shift
done
[[ "$size" =~ ^(full|tiny)$ ]] || refuse "--size is '$size'; allowed: full, tiny"
[[ "$limit" =~ ^[1-9][0-9]{0,5}$ ]] || refuse "--seconds is '$limit'; allowed: a whole number from 1 on"
[[ -z "$wheelhouse" || -n "$(compgen -G "$wheelhouse/*.whl")" ]] ||
  refuse "--wheelhouse $wheelhouse has no wheel; allowed: a folder with some"
((${#parts[@]})) || parts=("${known[@]}")
[[ "$output" == /* ]] || output="$PWD/$output"
: >>"$output" || refuse "--output $output cannot be written"
cd "$root" || exit

venv="${SCALEPET_VENV:-.venv}"
python="${PYTHON:-$([[ -x "$venv/bin/python" ]] && echo "$venv/bin/python" || echo python3)}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
site="$scratch/site"
if [[ -n "$wheelhouse" ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" \
    "$wheelhouse"/*.whl || refuse "--wheelhouse $wheelhouse cannot be installed"
fi
export PYTHONPATH="$site:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export HF_HOME="$scratch/huggingface" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=disabled
export TOKENIZERS_PARALLELISM=false
# Kernels run on the device itself; without one they are read line by line, where they are at all.
nvidia-smi -L >/dev/null 2>&1 && unset TRITON_INTERPRET

"$python" -m scalepet.launch.needs pyproject.toml torch transformers accelerate deepspeed datasets \
  pydantic typer rich yaml pytest scalepet.bench || exit 2

failed=()
for part in "${parts[@]}"; do
  # None takes more than half of what is left, so that those after it have their turn.
  seconds=$(((limit - SECONDS) / 2))
  if ((seconds > 0)); then
    echo "scalepet: $part, at most $seconds s"
    timeout --kill-after=5 "$seconds" \
      "$python" -m scalepet.bench "$part" --size "$size" --output "$output"
    code=$?
    ((code)) || continue
    error="ended with exit code $code; it had $seconds s"
  else
    error="no time was left"
  fi
  failed+=("$part")
  printf '{"part": "%s", "size": "%s", "error": "%s"}\n' "$part" "$size" "$error" >>"$output"
done
echo "scalepet: $output has the figures"
((${#failed[@]} == 0)) || { echo "scalepet: failed: ${failed[*]}" >&2; exit 1; }
