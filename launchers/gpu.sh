#!/usr/bin/env bash
# Every figure of the README that wants a GPU, and the tests that do; wants one with 80 GB.
#
#   bash launchers/gpu.sh                 T5 v1.1 from small to XXL, and UL2
#   bash launchers/gpu.sh small base      these sizes alone: on a smaller GPU, or tried on a CPU
#
# Step time, tokens a second, memory and size beside PEFT's, of the two largest sizes:   bench/SIZE/
# Seconds and memory of a step against the size of the backbone and what is tuned:       studies/cost/report/
# The same with the weights in host memory (ZeRO-3), of the two largest sizes:           studies/cost-offload/
# Stopped, the same command measures again what is not finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

known=(small base large xl xxl ul2)
sizes=("${@:-${known[@]}}")
for size in "${sizes[@]}"; do
  [[ " ${known[*]} " == *" $size "* ]] || {
    echo "usage: bash launchers/gpu.sh [SIZE]...    SIZE: ${known[*]}" >&2
    exit 2
  }
done
largest=("${sizes[@]: -2}")
((${#largest[@]})) || largest=("${sizes[@]}")

bash launchers/environment.sh test,assets,bench
PATH="$(cd "${SCALEPET_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH TOKENIZERS_PARALLELISM=false

# What is measured must be right first.
python -m pytest -q -m gpu tests

for size in "${largest[@]}"; do
  scalepet bench --shape "$size" --precision bf16 --density 0.01% --density 0.1% --output "bench/$size"
done

study=launchers/study-cost.yaml
scalepet assets title-t5 newsgroups
whole=() offloaded=()
for size in "${sizes[@]}"; do
  whole+=(--only "$size/*")
done
for size in "${largest[@]}"; do
  offloaded+=(--only "$size/*/apet-as-lora" --only "$size/*/lora")
done
scalepet sweep "$study" "${whole[@]}"
scalepet sweep "$study" output=studies/cost-offload base.deepspeed=zero3_offload_cpu "${offloaded[@]}"
scalepet report studies/cost
scalepet report studies/cost-offload
