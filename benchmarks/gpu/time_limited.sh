# Sourced by suite.sh and quality.sh: steps that run one after the other, each with a time limit of
# its own, under one limit for all. What a step prints goes to $out/log.txt at once, so that an
# interruption loses nothing. The script sets out, rehearse (0 or 1) and total_limit (seconds).
set -uo pipefail # and not -e: a step that fails does not stop the next

export PYTHON=${PYTHON:-python3}
export PYTHONPATH=.:kernels/torch-ext${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
num_failed=0

say() {
    echo "$@" | tee -a "$out/log.txt"
}

# step NAME SECONDS COMMAND...: run the command for at most so many seconds
step() {
    local name=$1 limit=$2 left=$((total_limit - SECONDS)) start=$SECONDS code=0
    shift 2
    ((rehearse)) && limit=$((5 * limit)) # it checks that everything runs, on any machine
    if ((left < 5)); then
        say "== $name: not run, no time is left of $total_limit s"
        num_failed=$((num_failed + 1))
        return
    fi
    ((limit < left)) || limit=$left
    say "== $name: $*"
    timeout --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1 </dev/null || code=$?
    case $code in # timeout exits with 124, or 137 where it had to kill
    0) say "== $name: done in $((SECONDS - start)) s" ;;
    124 | 137) say "== $name: STOPPED after $limit s; what it had written is kept" ;;
    *)
        say "== $name: FAILED with exit code $code after $((SECONDS - start)) s"
        tail -n 5 "$out/log.txt"
        ;;
    esac
    ((code == 0)) || num_failed=$((num_failed + 1))
}

# need MODULE...: name what cannot be imported, and stop where there is no torch or no device
need() {
    "$PYTHON" - "$rehearse" "$@" 2>&1 <<'PYTHON' | tee -a "$out/log.txt"
import importlib.metadata, importlib.util, platform, sys

rehearse, modules = sys.argv[1] == "1", sys.argv[2:]
print("python", platform.python_version(), sys.executable)
missing = [name for name in modules if importlib.util.find_spec(name) is None]
for name in modules:
    if name not in missing:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "found")
if missing:
    print(f"missing: {', '.join(missing)}; steps that need them will fail, the others run")
if {"torch", "transformers"} & set(missing):
    sys.exit(
        "without torch and transformers nothing can run; set PYTHON=... to an interpreter that"
        " has them"
    )
import torch

if torch.cuda.is_available():
    print("device", torch.cuda.get_device_name(), "cuda", torch.version.cuda)
elif not rehearse:
    sys.exit("torch sees no CUDA device; --rehearse runs everything on the CPU, in tiny sizes")
PYTHON
    local code=${PIPESTATUS[0]}
    ((code == 0)) || exit 2
}

# finish: sum up; the exit code is 0 if every step was done
finish() {
    say "== $num_failed steps failed or were stopped; $SECONDS s; results in $out"
    ((num_failed == 0))
}
