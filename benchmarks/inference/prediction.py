"""How long a workload must take by its operations, before it is timed.

Two parts: what the device's operations must take (roofline.py), and the host's part, the time that
Python and PyTorch need to launch the operations.
"""

import statistics
from dataclasses import replace

from transformers import PreTrainedModel

from benchmarks.harness.models import random_model, tiny_twin
from benchmarks.inference.model_size import ModelSize
from benchmarks.inference.operations import decode_operations, prefill_operations
from benchmarks.inference.roofline import Rates
from benchmarks.inference.workloads import Workload, run

HOST_SAMPLES = 15
Models = dict[str, PreTrainedModel]
"""The two models under "dense" and "compressed"."""


def predict(models: Models, workload: Workload, rates: Rates) -> dict[str, dict[str, float]]:
    """Milliseconds by model: the device's operations, the host's part, and the whole.

    On a CPU one follows the other. A GPU works while the host prepares what comes next, so there
    the longer one counts."""
    predicted, host = {}, host_ms(models, workload)
    for name, model in models.items():
        device = device_ms(model, workload, rates)
        on_cpu = model.device.type == "cpu"
        whole = device + host[name] if on_cpu else max(device, host[name])
        predicted[name] = {"predicted_ms": whole, "device_ms": device, "host_ms": host[name]}
    return predicted


def device_ms(model: PreTrainedModel, workload: Workload, rates: Rates) -> float:
    """The roofline of what ``Times.time_ms`` measures."""
    seconds, width = 0.0, model.config.intermediate_size
    batch_size = workload.batch_size
    if workload.kind != "decode":
        operations = prefill_operations(model, batch_size, workload.prompt_length)
        seconds += rates.seconds(operations, width)
    if workload.kind != "prefill":
        # all steps are taken to be the one halfway: a step's time grows linearly with the context
        num_steps = 1 if workload.kind == "decode" else workload.new_tokens - 1
        operations = decode_operations(model, batch_size, workload.context)
        seconds += num_steps * rates.seconds(operations, width)
    return 1e3 * seconds


def host_ms(models: Models, workload: Workload) -> dict[str, float]:
    """The host's part of what ``Times.time_ms`` measures, by model: the same workload on one token
    of a twin with as many layers and next to no arithmetic.
    """
    on_one_token = replace(workload, batch_size=1, prompt_length=1)
    times_ms: dict[int, float] = {}
    # by number of layers: two models with as many share one measurement, so that its noise does not
    # look like a difference between them
    for model in models.values():
        num_layers = model.config.num_hidden_layers
        if num_layers not in times_ms:
            twin = random_model(tiny_twin(model.config), str(model.device), model.dtype)
            run(twin, on_one_token)  # warms up
            times_ms[num_layers] = statistics.median(
                run(twin, on_one_token).time_ms for _ in range(HOST_SAMPLES)
            )
    return {name: times_ms[model.config.num_hidden_layers] for name, model in models.items()}


def flops_and_bytes(size: ModelSize, workload: Workload) -> dict[str, int]:
    """FLOPs of what ``Times.time_ms`` measures, and the bytes that it must at least move."""
    step = size.decode(workload.batch_size, workload.context)
    if workload.kind == "decode":
        return step
    prefill = size.prefill(workload.batch_size, workload.prompt_length)
    return {name: prefill[name] + (workload.new_tokens - 1) * step[name] for name in step}
