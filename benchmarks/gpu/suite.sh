#!/usr/bin/env bash
# Everything worth measuring on one GPU, in order of value, in under nine minutes.
#
#     benchmarks/gpu/suite.sh [--rehearse] [FOLDER]
#
# FOLDER (or $OUT; else benchmarks/results) receives eleven small text files at most, each as soon
# as it is known: log.txt with the tests' results and what every step printed, and the steps' JSON.
# PYTHON=... is the interpreter, NAME=... ends the files' names (default: gpu), SMOLLM2=DIR adds a
# scoring pass and training of that model, COMMIT=... names the commit where the copy has no .git.
# --rehearse runs the same steps on the CPU in tiny sizes; its numbers mean nothing and go to
# runs/rehearsal-suite.
cd "$(dirname "$0")/../.." || exit 2
rehearse=0 out=${OUT:-} name=${NAME:-gpu} total_limit=520
for argument in "$@"; do
    case $argument in
    --rehearse) rehearse=1 ;;
    -*)
        echo "unknown $argument; usage: benchmarks/gpu/suite.sh [--rehearse] [FOLDER]" >&2
        exit 2
        ;;
    *) out=$argument ;;
    esac
done
if ((rehearse)); then
    total_limit=1800
    : "${out:=runs/rehearsal-suite}"
    tests=(compaction) selected=hole # one test, for its time
    kernels=(--quick --device cpu --op residual_change)
    scoring=(--shape tiny --device cpu --num-tokens 256 --sequence-length 64 --samples 2)
    shapes=(tiny)
    speedup=(--device cpu --prefill 1x32 --decode 2x16 --new-tokens 4 --samples 2)
    widths=(--device cpu --hidden 64 --centre 512 --reach 64 --num-tokens 16 --rounds 2)
    compaction=(--shape tiny --device cpu --samples 2)
    recovery=(--device cpu --sequence-length 128 --batch 2 --steps 2 --rounds 2)
else
    : "${out:=benchmarks/results}"
    tests=(gated_activation dual_gemm residual_change compaction ffn) selected=""
    kernels=(--device cuda)
    scoring=(--shape llama3-8b --device cuda --num-tokens 16384 --sequence-length 2048)
    shapes=(llama3-8b gemma2-9b qwen2.5-7b)
    speedup=(--device cuda --decode 1x512 64x512 --new-tokens 16 --samples 5)
    widths=(--device cuda)
    compaction=(--shape llama3-8b --device cuda --samples 5 --no-files)
    recovery=(--device cuda --dtype bfloat16 --sequence-length 1024 --steps 6 --rounds 3)
    "${PYTHON:-python3}" -c "import liger_kernel" 2>/dev/null && recovery+=(--liger)
fi
mkdir -p "$out" || exit 2
: >"$out/log.txt"
# shellcheck source=benchmarks/gpu/time_limited.sh
source benchmarks/gpu/time_limited.sh

need torch triton transformers tqdm pytest hypothesis liger_kernel vllm trl torch_pruning

# Files of tests run side by side, since most of their time is compiling. The options of
# pyproject.toml are left out: they name a plugin that may be absent.
run_tests='selected=$1 failed=0 running=()
shift
for file; do
    (set -o pipefail && "$PYTHON" -m pytest -v -p no:cacheprovider -o addopts= -k "$selected" \
        "tests/kernels/test_$file.py" 2>&1 | sed --unbuffered "s/^/$file: /") &
    running+=($!)
done
for process in "${running[@]}"; do wait "$process" || failed=1; done
exit $failed'
step tests 120 bash -c "$run_tests" tests "$selected" "${tests[@]}"
step kernels 120 "$PYTHON" -m benchmarks.kernels.bench_kernels "${kernels[@]}" \
    --json "$out/kernels_$name.json"
step scoring 40 "$PYTHON" -m benchmarks.scoring.bench_scoring "${scoring[@]}" \
    --json "$out/scoring_${scoring[1]}_$name.json"
if [[ -n ${SMOLLM2:-} ]]; then
    step "scoring SmolLM2" 30 "$PYTHON" -m benchmarks.scoring.bench_scoring --model "$SMOLLM2" \
        --json "$out/scoring_smollm2_$name.json"
fi
for shape in "${shapes[@]}"; do
    step "speedup $shape" 80 "$PYTHON" -m benchmarks.inference.speedup --shape "$shape" \
        "${speedup[@]}" --json "$out/speedup_${shape}_$name.json"
done
step compaction 40 "$PYTHON" -m benchmarks.compaction.bench_compaction "${compaction[@]}" \
    --json "$out/compaction_${compaction[1]}_$name.json"
if ((rehearse)) || [[ -n ${SMOLLM2:-} ]]; then
    step recovery 60 "$PYTHON" -m benchmarks.recovery.throughput ${SMOLLM2:+--model "$SMOLLM2"} \
        "${recovery[@]}" --json "$out/throughput_${SMOLLM2:+smollm2_}$name.json"
fi
step alignment 40 "$PYTHON" -m benchmarks.inference.widths "${widths[@]}" \
    --json "$out/alignment_$name.json"
finish
