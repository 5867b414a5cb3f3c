"""Run a model's gated feed-forward networks (FFNs) on the fused activation, with each neuron's statistics taken on the way.

Nothing here knows a model family: FFNs are found by the names of their projections, and each kind is checked against the module's
own forward pass before it is swapped.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import reference
from .dual_gemm import dual_gemm
from .gated_activation import Activation, Mode, NeuronSums, gated_activation

# The check before a swap compares two orders of rounding: a few units in the last place of each type.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class GatedFfn:
    """The parts of one FFN that computes down(act(gate(x)) * up(x))."""

    module: nn.Module
    inputs: list[nn.Linear]
    """[gate, up], or one projection that holds gate and up, one above the other."""
    down: nn.Linear

    @property
    def fused(self) -> bool:
        """Whether one projection holds gate and up."""
        return len(self.inputs) == 1

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.down.in_features

    @property
    def act_fn(self) -> Callable[[Tensor], Tensor] | None:
        """The module's activation function, or None where it has no usual name."""
        return getattr(self.module, "act_fn", None) or getattr(self.module, "activation_fn", None)


@dataclass
class FfnStatistics:
    """What ``collect_statistics`` gathers, in the order of the FFNs."""

    sums: dict[str, NeuronSums]
    """Each FFN's sums, by the module's name in the model."""
    token_mask: Tensor | None = None
    """Set before a forward pass: True for the tokens that count, one entry a token; None counts all."""
    enabled: bool = True
    """Whether forward passes count."""

    def square(self) -> Tensor:
        """(num_layers, width) fp64: every FFN's sums of squares, on the CPU."""
        return torch.stack([sums.square.cpu() for sums in self.sums.values()])


def find_gated_ffns(model: nn.Module) -> dict[str, GatedFfn]:
    """Return the FFNs of a model by name: modules that hold gate_proj, up_proj and down_proj, or gate_up_proj and down_proj.

    Raises:
        ValueError: there is none.
    """
    found = {}
    for name, module in model.named_modules():
        down = getattr(module, "down_proj", None)
        for names in (("gate_proj", "up_proj"), ("gate_up_proj",)):
            inputs = [getattr(module, each, None) for each in names]
            if isinstance(down, nn.Linear) and all(isinstance(each, nn.Linear) for each in inputs):
                found[name] = GatedFfn(module, inputs, down)  # type: ignore[arg-type]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module with linear gate_proj, up_proj and down_proj, or gate_up_proj and down_proj"
        )
    return found


@contextmanager
def collect_statistics(
    model: nn.Module,
    *,
    every: bool = False,
    mode: Mode = "fast",
    ffns: dict[str, GatedFfn] | None = None,
    use_dual_gemm: bool = False,
) -> Iterator[FfnStatistics]:
    """Inside, every forward pass of ``model`` adds to the statistics that are yielded; afterwards the model is as before.

    The FFNs run on ``gated_activation``, so taking statistics costs no pass over the activations. Works with and without gradients,
    under gradient checkpointing (a repeated forward pass is not counted) and with accelerate's device_map.

    Args:
        model: any module that contains gated FFNs.
        every: take sum, sum of |a| and maximum of |a| besides the squares.
        mode: fast rounds the activation once; match_hf rounds as transformers' modules do.
        ffns: which FFNs, by name (default: find_gated_ffns(model)).
        use_dual_gemm: compute both projections, activation and sums in one kernel where no gradient is needed: no gate and up in
            memory. Its speed is not known on any GPU yet, so it is off.

    Raises:
        ValueError: no gated FFN was found.
    """
    ffns = find_gated_ffns(model) if ffns is None else ffns
    sums = {name: NeuronSums.zeros(ffn.width, _device(ffn), every) for name, ffn in ffns.items()}
    statistics = FfnStatistics(sums)
    with fused_ffns(ffns, statistics, mode, use_dual_gemm):
        yield statistics


@contextmanager
def fused_ffns(
    ffns: dict[str, GatedFfn], statistics: FfnStatistics | None = None, mode: Mode = "fast", use_dual_gemm: bool = False
) -> Iterator[None]:
    """Inside, these FFNs run on ``gated_activation``: in training this keeps one activation less than eager modules do.

    An FFN whose own forward pass computes something else keeps it, with a warning, and its statistics come from a hook.
    """
    as_expected: dict[type, bool] = {}
    with ExitStack() as stack:
        for name, ffn in ffns.items():
            kind = type(ffn.module)
            forward = _forward(ffn, statistics, name, mode, use_dual_gemm)
            if kind not in as_expected:
                as_expected[kind] = _computes_the_same(ffn, _forward(ffn, None, name, mode, use_dual_gemm))
            if as_expected[kind]:
                stack.enter_context(_swapped(ffn.module, forward))
            elif statistics is not None:
                stack.enter_context(_hooked(ffn, statistics, name))
        yield


def _forward(
    ffn: GatedFfn, statistics: FfnStatistics | None, name: str, mode: Mode, use_dual_gemm: bool
) -> Callable[[Tensor], Tensor]:
    activation = recognize_activation(ffn.act_fn)
    plain = not any(hasattr(linear, "_hf_hook") or linear._forward_hooks or linear._forward_pre_hooks for linear in ffn.inputs)
    one_kernel = use_dual_gemm and plain and activation is not None and not ffn.fused

    def forward(hidden: Tensor) -> Tensor:
        counts = statistics is not None and statistics.enabled
        sums = statistics.sums[name] if statistics and counts else None
        mask = statistics.token_mask if statistics and counts else None
        if one_kernel and not torch.is_grad_enabled():
            gate_proj, up_proj = ffn.inputs
            weights = gate_proj.weight, up_proj.weight, gate_proj.bias, up_proj.bias
            active = dual_gemm(hidden, *weights, activation, sums=sums, token_mask=mask, mode=mode)
            assert active is not None  # it is stored
            return ffn.down(active)
        if ffn.fused:
            gate, up = ffn.inputs[0](hidden).chunk(2, dim=-1)
        else:
            gate, up = ffn.inputs[0](hidden), ffn.inputs[1](hidden)
        if activation is None and ffn.act_fn is not None:
            gate = ffn.act_fn(gate)
        # Nobody else holds the gate then, and writing over it spares an allocation as large as the activation.
        reusable = not torch.is_grad_enabled() and not ffn.fused and not ffn.inputs[0]._forward_hooks
        out = gate if reusable else None
        return ffn.down(gated_activation(gate, up, activation, sums=sums, token_mask=mask, mode=mode, out=out))

    return forward


def recognize_activation(act_fn: Callable[[Tensor], Tensor] | None) -> Activation | None:
    """silu or gelu_tanh, if that is what the function computes, else None: the function itself then has to be called."""
    if act_fn is None or (isinstance(act_fn, nn.Module) and any(True for _ in act_fn.parameters())):
        return None
    probe = torch.linspace(-6.0, 6.0, 49)
    with torch.no_grad():
        out = act_fn(probe)
    for activation in ("silu", "gelu_tanh"):  # exact GELU differs from the tanh form by up to 5e-4
        if torch.allclose(out, reference.activate(probe, activation), atol=1e-5):
            return activation
    return None


@torch.no_grad()
def _computes_the_same(ffn: GatedFfn, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether the module's own forward pass equals ours on two made-up tokens; warns where it does not."""
    weight = ffn.down.weight
    device = _device(ffn)
    numbers = torch.arange(2 * ffn.inputs[0].in_features, dtype=torch.float32)
    hidden = torch.sin(numbers * 12.9898).view(1, 2, -1).to(device, weight.dtype)
    expected, ours = ffn.module.forward(hidden), forward(hidden)
    same = isinstance(expected, Tensor) and expected.shape == ours.shape
    if same:
        error = (ours.double() - expected.double()).norm()
        same = not error > TOLERANCE.get(weight.dtype, 1e-1) * expected.double().norm()  # NaN weights are not this check's matter
    if not same:
        warnings.warn(
            f"{type(ffn.module).__name__} is no down(act(gate) * up): it runs as it is, and its statistics cost an extra pass",
            stacklevel=2,
        )
    return same


@contextmanager
def _swapped(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put another forward on one module. accelerate's hooks call the original as ``_old_forward``, and stay around ours."""
    attribute = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    before = module.__dict__.get(attribute)
    setattr(module, attribute, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(module, attribute)
        else:
            setattr(module, attribute, before)


@contextmanager
def _hooked(ffn: GatedFfn, statistics: FfnStatistics, name: str) -> Iterator[None]:
    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # A pre-hook's return value replaces the input: this one must return nothing.
        if statistics.enabled and torch._C._current_graph_task_id() == -1:
            mask_T = None if statistics.token_mask is None else statistics.token_mask.reshape(-1)
            reference.add_neuron_sums_(statistics.sums[name].tensors(), args[0].detach().flatten(0, -2), mask_T)

    handle = ffn.down.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _device(ffn: GatedFfn) -> torch.device:
    """Where the FFN computes: its weights' device, or accelerate's execution device where they are offloaded."""
    hook = getattr(ffn.module, "_hf_hook", None) or getattr(ffn.down, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else ffn.down.weight.device
