#!/usr/bin/env bash
# PTL against Prune-Once, ShortGPT and SliceGPT on SmolLM2-135M with equal recovery tokens, in under
# nine minutes on one GPU.
#
#     benchmarks/gpu/quality.sh [--rehearse] MODEL DATA [FOLDER]
#
# MODEL is SmolLM2's folder; DATA holds GSM8K's train.jsonl (recovery) and test.jsonl (negative
# log-likelihood and accuracy). FOLDER (or $OUT; else benchmarks/results) receives log.txt and
# quality_smollm2_NAME.json, written anew after every method; the runs themselves stay in RUNS=...
# (default: runs/quality), so that the same command goes on where it was stopped. PYTHON=... is the
# interpreter, NAME=... ends the file's name (default: gpu), TOKENS=... are each method's recovery
# tokens. --rehearse needs neither MODEL nor DATA: the bundled model on the CPU, in tiny sizes; its
# numbers mean nothing.
cd "$(dirname "$0")/../.." || exit 2
usage="usage: benchmarks/gpu/quality.sh [--rehearse] MODEL DATA [FOLDER]"
rehearse=0 name=${NAME:-gpu} total_limit=520 places=()
for argument in "$@"; do
    case $argument in
    --rehearse) rehearse=1 ;;
    -*) echo "unknown $argument; $usage" >&2 && exit 2 ;;
    *) places+=("$argument") ;;
    esac
done
if ((rehearse)); then
    total_limit=1800
    out=${places[0]:-${OUT:-runs/rehearsal-quality}} model=ptl-demo
    data=$out/rehearsal.jsonl runs=${RUNS:-$out/runs} accuracy=
    settings=(--device cpu --recovery-tokens 512 --sequence-length 64 --global-batch 2)
    settings+=(--calibration-tokens 256 --eval-limit 4 --eval-tasks nll)
    settings+=(--width-multiple 32 --overwrite)
    keep=0.5 rounds=2 layers=1
else
    if ((${#places[@]} < 2)); then
        echo "$usage" >&2
        exit 2
    fi
    model=${places[0]} data=${places[1]}/train.jsonl
    out=${places[2]:-${OUT:-benchmarks/results}} runs=${RUNS:-runs/quality}
    accuracy=,ptl_gsm8k=${places[1]}/test.jsonl
    settings=(--recovery-tokens "${TOKENS:-1000000}" --learning-rate 1e-4 --sequence-length 512)
    settings+=(--global-batch 16 --micro-batch 16 --gradient-checkpointing false)
    settings+=(--calibration-tokens 65536 --eval-batch 128 --eval-limit 128)
    # 7 of 30 layers hold about as many parameters as a third of the FFN neurons
    keep=0.667 rounds=4 layers=7
fi
mkdir -p "$out" "$runs" || exit 2
if ((rehearse)); then
    for number in {100..499}; do
        printf '{"question": "What is %d + 7?", "answer": "%d + 7 = %d"}\n' \
            "$number" "$number" $((number + 7))
    done >"$data"
fi
: >"$out/log.txt"
# shellcheck source=benchmarks/gpu/time_limited.sh
source benchmarks/gpu/time_limited.sh

need torch triton transformers accelerate datasets trl jsonargparse docstring_parser yaml lm_eval
if [[ -n $accuracy ]] && ! "$PYTHON" -c "import lm_eval" 2>/dev/null; then
    say "== accuracy is not measured: lm_eval cannot be imported"
    accuracy=
fi
((rehearse)) || settings+=(--eval-tasks "nll=${places[1]}/test.jsonl$accuracy")

# method NAME FLAGS...
method() {
    local method=$1
    shift
    step "$method" 130 "$PYTHON" -m ptl_fast.compress --model "$model" --data "$data" \
        "${settings[@]}" "$@" --output "$runs/$method"
    step "results" 20 "$PYTHON" -m benchmarks.methods.quality "$runs" \
        --json "$out/quality_smollm2_$name.json"
}

method ptl --keep "$keep" --rounds "$rounds"
method prune-once --keep "$keep" --rounds 1
method shortgpt --keep 1 --layer-scorer block-influence --drop-layers "$layers" \
    --layers-per-round "$layers"
method slicegpt --keep 1 --slice-hidden 0.75
method dense-same-training --keep 1 --rounds 1
finish
