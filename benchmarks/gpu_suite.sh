#!/usr/bin/env bash
# Everything worth measuring on one GPU, in order of value, in under nine minutes.
#
#     benchmarks/gpu_suite.sh [--rehearse] [FOLDER]
#
# FOLDER (or $OUT; else benchmarks/results) receives eight small text files at most, each as soon as it is known: log.txt with the
# tests' results and what every part printed, and the parts' JSON. PYTHON=... is the interpreter, NAME=... ends the files' names
# (default: gpu), SMOLLM2=DIR adds a scoring pass of that model, COMMIT=... names the commit where the copy has no .git.
# --rehearse runs the same parts on the CPU in tiny sizes; its numbers mean nothing and go to runs/rehearsal-suite.
cd "$(dirname "$0")/.." || exit 2
rehearse=0 out=${OUT:-} name=${NAME:-gpu} total_limit=520
for argument in "$@"; do
    case $argument in
    --rehearse) rehearse=1 ;;
    -*) echo "unknown $argument; usage: gpu_suite.sh [--rehearse] [FOLDER]" >&2 && exit 2 ;;
    *) out=$argument ;;
    esac
done
if ((rehearse)); then
    total_limit=1800
    : "${out:=runs/rehearsal-suite}"
    tests=(compaction) selected=hole
    kernels=(--quick --device cpu --op residual_change)
    scoring=(--shape tiny --device cpu --num-tokens 256 --sequence-length 64 --samples 2)
    shapes=(tiny)
    speedup=(--device cpu --prefill 1x32 --decode 2x16 --new-tokens 4 --samples 2)
    alignment=(--device cpu --hidden 64 --centre 512 --reach 64 --num-tokens 16 --rounds 2)
else
    : "${out:=benchmarks/results}"
    tests=(gated_activation dual_gemm residual_change compaction ffn) selected=""
    kernels=(--device cuda)
    scoring=(--shape llama3-8b --device cuda --num-tokens 16384 --sequence-length 2048)
    shapes=(llama3-8b gemma2-9b qwen2.5-7b)
    speedup=(--device cuda --decode 1x512 64x512 --new-tokens 16 --samples 5)
    alignment=(--device cuda)
fi
mkdir -p "$out" || exit 2
: >"$out/log.txt"
# shellcheck source=benchmarks/parts.sh
source benchmarks/parts.sh

need torch triton transformers tqdm pytest hypothesis liger_kernel vllm

# Side by side, since most of their time is compiling. addopts would name a plugin that may be absent.
run_tests='selected=$1 failed=0 running=()
shift
for file; do
    (set -o pipefail && "$PYTHON" -m pytest -v -p no:cacheprovider -o addopts= -k "$selected" "tests/test_$file.py" 2>&1 |
        sed --unbuffered "s/^/$file: /") &
    running+=($!)
done
for process in "${running[@]}"; do wait "$process" || failed=1; done
exit $failed'
part tests 120 bash -c "$run_tests" tests "$selected" "${tests[@]}"
part kernels 120 "$PYTHON" -m benchmarks.bench_kernels "${kernels[@]}" --json "$out/kernels_$name.json"
part scoring 40 "$PYTHON" -m benchmarks.bench_scoring "${scoring[@]}" --json "$out/scoring_${scoring[1]}_$name.json"
if [[ -n ${SMOLLM2:-} ]]; then
    part "scoring SmolLM2" 30 "$PYTHON" -m benchmarks.bench_scoring --model "$SMOLLM2" --json "$out/scoring_smollm2_$name.json"
fi
for shape in "${shapes[@]}"; do
    part "speedup $shape" 80 "$PYTHON" -m benchmarks.speedup --shape "$shape" "${speedup[@]}" --json "$out/speedup_${shape}_$name.json"
done
part alignment 40 "$PYTHON" -m benchmarks.alignment "${alignment[@]}" --json "$out/alignment_$name.json"
finish
