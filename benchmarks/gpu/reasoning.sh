#!/usr/bin/env bash
# The table of docs/reasoning.md for a chat model of 7B to 8B parameters on one GPU: how many
# problems of GSM8K and MBPP it still solves after each method made it smaller.
#
#     benchmarks/gpu/reasoning.sh [--rehearse] MODEL DATA [FOLDER]
#
# MODEL is the model's folder; DATA holds gsm8k/ and mbpp/ as ../shared/data does. FOLDER (or $OUT;
# else benchmarks/results/reasoning_NAME) receives log.txt and a file for each cell, rewritten after
# every batch of answers; the same command goes on where it was stopped. The model's own answers to
# training problems, the runs and what the models wrote stay in RUNS=... (default: runs/reasoning).
#
# PYTHON=... is the interpreter, NAME=... ends the folder's name (default: gpu), LIMIT=... is the
# time in seconds (default: 21600), CELLS=... are patterns of cells' names (default: all but those
# after recovery, which need the memory of Adam's states in float32: four times the weights). TOKENS=...
# calibrate (131072); ANSWER=... tokens are the most that an answer may have (1024). FLAGS=... are
# further flags of benchmarks.methods.reasoning. --rehearse needs neither MODEL nor DATA: the bundled
# model on the CPU, in tiny sizes; its numbers mean nothing.
cd "$(dirname "$0")/../.." || exit 2
usage="usage: benchmarks/gpu/reasoning.sh [--rehearse] MODEL DATA [FOLDER]"
rehearse=0 name=${NAME:-gpu} total_limit=${LIMIT:-21600} places=()
for argument in "$@"; do
    case $argument in
    --rehearse) rehearse=1 ;;
    -*) echo "unknown $argument; $usage" >&2 && exit 2 ;;
    *) places+=("$argument") ;;
    esac
done
if ((rehearse)); then
    out=${places[0]:-${OUT:-runs/rehearsal-reasoning}} runs=${RUNS:-$out/runs}
    model=$out/world/model data=$out/world/data
    settings=(--device cpu --dtype float32 --problems 4 --batch 3 --num-traced 6 --max-tokens 60)
    settings+=(--calibration-tokens 300 --width-multiple 8 --shares 0.8 --more-shares)
    cells=${CELLS:-dense default_80_own_none_0 paper_80_own_none_0}
else
    if ((${#places[@]} < 2)); then
        echo "$usage" >&2
        exit 2
    fi
    model=${places[0]} data=${places[1]} runs=${RUNS:-runs/reasoning}
    out=${places[2]:-${OUT:-benchmarks/results/reasoning_$name}}
    settings=(--device cuda --dtype bfloat16 --batch 150 --max-tokens "${ANSWER:-1024}")
    settings+=(--calibration-tokens "${TOKENS:-131072}" --width-multiple 128)
    cells=${CELLS:-dense *_none_*}
fi
mkdir -p "$out" || exit 2
: >"$out/log.txt"
# shellcheck source=benchmarks/gpu/time_limited.sh
source benchmarks/gpu/time_limited.sh

need torch triton transformers accelerate datasets jsonargparse docstring_parser yaml lm_eval math_verify
if ((rehearse)); then
    step "small world" 60 "$PYTHON" -m benchmarks.methods.reasoning_rehearsal "$out/world"
fi
read -ra patterns <<<"$cells"
# shellcheck disable=SC2206  # FLAGS are words
extra=(${FLAGS:-})
step cells "$total_limit" "$PYTHON" -m benchmarks.methods.reasoning --model "$model" \
    --data "$data" --results "$out" --work "$runs" --cells "${patterns[@]}" "${settings[@]}" \
    --seconds "$((total_limit - SECONDS))" --allow-code-execution "${extra[@]}"
finish
