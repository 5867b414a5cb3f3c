"""Run a model's feed-forward networks (FFNs) on the fused activation, which takes each neuron's
statistics on the way.

Nothing here knows a model family. FFNs are found by the names of their projections, and before the
forward pass of one is swapped, it and ours run on two made-up tokens and are compared.
"""

import typing
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from ._common import Activation, Mode, NeuronSums, is_recomputation
from .dual_gemm import dual_gemm
from .gated_activation import gated_activation

# Relative error of a whole output that the check before a swap allows: a fused kernel rounds less
# often than separate modules do, and a difference of two roundings is no other computation.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# What modules call their activation function.
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "activation")

# Whether the made-up tokens of that check are running, which must not count.
_checking: ContextVar[bool] = ContextVar("checking", default=False)


def matrix(linear: nn.Module) -> Tensor:
    """A view of a linear layer's weight as (out_features, in_features); transformers' Conv1D, told
    by its field ``nx``, holds the transpose.
    """
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight.T if hasattr(linear, "nx") else weight


def features(linear: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) as recorded: a quantised weight has other shapes."""
    names = ("nf", "nx") if hasattr(linear, "nx") else ("out_features", "in_features")
    outputs, inputs = (getattr(linear, name) for name in names)
    return outputs, inputs


@dataclass(frozen=True)
class Ffn:
    """The parts of one FFN that computes down(act(gate(x)) * up(x)), or down(act(input(x)))."""

    module: nn.Module
    """What computes it; whatever contains the projections, if nothing computes it alone."""
    inputs: list[nn.Linear]
    """[gate, up]; or one projection that holds gate and up, one above the other; or the only one
    there is. Linear layers, or others that ``matrix`` knows.
    """
    down: nn.Linear

    @property
    def gated(self) -> bool:
        """Whether there are a gate and an up projection."""
        return len(self.inputs) == 2 or self.fused

    @property
    def fused(self) -> bool:
        """Whether one projection holds gate and up."""
        return len(self.inputs) == 1 and features(self.inputs[0])[0] == 2 * self.width

    @property
    def width(self) -> int:
        """Number of neurons."""
        return features(self.down)[1]

    @property
    def act_fn(self) -> Callable[[Tensor], Tensor] | None:
        """The module's activation function, or None where it has no usual name."""
        found = (getattr(self.module, name, None) for name in ACTIVATION_NAMES)
        return next((each for each in found if callable(each)), None)


@dataclass
class FfnStatistics:
    """What ``collect_statistics`` gathers, in the order of the FFNs."""

    sums: dict[str, NeuronSums]
    """Each FFN's sums, by the module's name in the model."""
    token_mask: Tensor | None = None
    """Set before a forward pass: True for the tokens that count, one entry a token; None counts
    all.
    """
    enabled: bool = True
    """Whether forward passes count."""

    def square(self) -> Tensor:
        """(num_layers, width) fp64: every FFN's sums of squares, on the CPU. Their widths must be
        equal.
        """
        return torch.stack([sums.square.cpu() for sums in self.sums.values()])


def find_gated_ffns(model: nn.Module) -> dict[str, Ffn]:
    """Return the FFNs of a model by name: modules that hold gate_proj, up_proj and down_proj, or
    gate_up_proj and down_proj.

    Raises:
        ValueError: there is none.
    """
    found = {}
    for name, module in model.named_modules():
        down = getattr(module, "down_proj", None)
        for names in (("gate_proj", "up_proj"), ("gate_up_proj",)):
            inputs = [getattr(module, each, None) for each in names]
            if isinstance(down, nn.Linear) and all(isinstance(each, nn.Linear) for each in inputs):
                found[name] = Ffn(module, inputs, down)  # type: ignore[arg-type]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module with linear gate_proj, up_proj and down_proj,"
            " or gate_up_proj and down_proj"
        )
    return found


@contextmanager
def collect_statistics(
    model: nn.Module,
    *,
    every: bool = False,
    mode: Mode = "fast",
    ffns: dict[str, Ffn] | None = None,
    use_dual_gemm: bool = False,
) -> Iterator[FfnStatistics]:
    """Inside this context every forward pass of ``model`` adds to the statistics that it yields;
    afterwards the model is as it was, also after an exception.

    The FFNs run on ``gated_activation``, so taking statistics costs no pass over the activations.
    Works with and without gradients, under gradient checkpointing (a repeated forward pass is not
    counted) and with accelerate's device_map.

    Args:
        model: any module that contains gated FFNs.
        every: take sum, sum of |a| and maximum of |a| besides the squares.
        mode: fast rounds the activation once; match_hf rounds as transformers' modules do.
        ffns: which FFNs, by name (default: find_gated_ffns(model)).
        use_dual_gemm: where no gradient is needed, run ``dual_gemm``: both projections, activation
            and sums in one kernel, without gate and up in memory. Its speed is not known on any GPU
            yet, so it is off.

    Yields:
        the sums so far of each FFN, on its device. Set ``token_mask`` before a forward pass with
        padding.

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
    ffns: dict[str, Ffn],
    statistics: FfnStatistics | None = None,
    mode: Mode = "fast",
    use_dual_gemm: bool = False,
) -> Iterator[None]:
    """Inside this context these FFNs run on ``gated_activation``. In training this keeps one tensor
    (num_tokens, width) less for the backward pass than separate modules keep.

    An FFN whose own forward pass computes something else, or that cannot be checked, keeps it, with
    one warning for its class, and its statistics come from a hook: an extra pass over the
    activation. Experts that see only some of the tokens (mixture of experts) cannot use a token
    mask.

    Args:
        ffns: the FFNs by name, as ``find_gated_ffns`` returns them.
        statistics: where to add, with sums for each of these names; None takes none.
        mode: fast or match_hf, as in ``gated_activation``.
        use_dual_gemm: as in ``collect_statistics``.
    """
    warned: set[type] = set()
    with ExitStack() as stack:
        for name, ffn in ffns.items():
            forward = _FusedForward(ffn, statistics, name, mode, use_dual_gemm)
            reason = _why_not(ffn, forward)
            if reason is None:
                stack.enter_context(_swapped(ffn.module, forward))
                continue
            if type(ffn.module) not in warned:
                warned.add(type(ffn.module))
                kind = type(ffn.module).__name__
                warnings.warn(
                    f"{kind} runs as it is, and its statistics cost an extra pass: {reason}",
                    stacklevel=3,
                )
            if statistics is not None:
                stack.enter_context(_hooked(ffn, statistics, name))
        yield


class _FusedForward:
    """The forward pass of one FFN, in place of the module's. An object and no closure: deepcopy of
    the model copies it too, and the copy then runs on its own weights.
    """

    def __init__(
        self,
        ffn: Ffn,
        statistics: FfnStatistics | None,
        name: str,
        mode: Mode,
        use_dual_gemm: bool,
    ) -> None:
        self.ffn, self.statistics, self.name, self.mode, self.use_dual_gemm = (
            ffn,
            statistics,
            name,
            mode,
            use_dual_gemm,
        )
        # A module without one has written it into its forward pass, and mostly it is SiLU: the
        # check before the swap knows.
        self.activation = recognize_activation(ffn.act_fn) if ffn.act_fn is not None else "silu"

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (hidden,) = (*args, *kwargs.values())  # an FFN takes one tensor, under whatever name
        ffn, inputs = self.ffn, self.ffn.inputs
        sums = mask = None
        if self.statistics is not None and self.statistics.enabled and not _checking.get():
            sums, mask = self.statistics.sums[self.name], self.statistics.token_mask
            mask = None if mask is None else mask.to(hidden.device)
        options: dict[str, Any] = {"sums": sums, "token_mask": mask, "mode": self.mode}
        # Somebody's hook on the activation function must see it run.
        act_fn_is_watched = isinstance(ffn.act_fn, nn.Module) and _has_hooks(ffn.act_fn)
        activation = None if act_fn_is_watched else self.activation
        if (
            self.use_dual_gemm
            and activation is not None
            and ffn.gated
            and not torch.is_grad_enabled()
            and _may_skip(inputs)
        ):
            weights = inputs[0].weight, inputs[1].weight, inputs[0].bias, inputs[1].bias
            active = dual_gemm(hidden, *weights, activation, **options)
            assert active is not None  # it is stored
            return ffn.down(active)
        gate, up = _projected(ffn, hidden)
        # Without gradients and hooks nobody else holds the gate projection's output: the result may
        # overwrite it, which saves a tensor of this size.
        reusable = not (
            torch.is_grad_enabled() or ffn.fused or activation is None or _has_hooks(inputs[0])
        )
        if activation is None and ffn.act_fn is not None:
            gate = ffn.act_fn(gate)
            reusable = False
        return ffn.down(
            gated_activation(gate, up, activation, out=gate if reusable else None, **options)
        )


def _projected(ffn: Ffn, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """(gate, up); (the only projection, None) of an FFN without a gate."""
    first, *others = (linear(hidden) for linear in ffn.inputs)
    if ffn.fused:
        gate, up = first.chunk(2, dim=-1)
        return gate, up
    return first, others[0] if others else None


def _has_hooks(module: nn.Module) -> bool:
    everywhere = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )


def _may_skip(inputs: list[nn.Linear]) -> bool:
    """Whether gate_proj and up_proj are plain linear layers that nobody watches (hooks) or loads on
    demand (accelerate): one kernel that reads their weights can then stand for both.
    """
    plain = len(inputs) == 2 and all(type(linear) is nn.Linear for linear in inputs)
    return plain and not any(hasattr(linear, "_hf_hook") or _has_hooks(linear) for linear in inputs)


def recognize_activation(act_fn: Callable[[Tensor], Tensor] | None) -> Activation | None:
    """The name of the kernels' activation that the function computes on 53 values from -1000 to
    1000; None if it is none of them: the function itself then has to be called.
    """
    if act_fn is None or (isinstance(act_fn, nn.Module) and any(True for _ in act_fn.parameters())):
        return None
    probe = torch.cat([torch.linspace(-6.0, 6.0, 49), torch.tensor([-1000.0, -20.0, 20.0, 1000.0])])
    try:
        with torch.no_grad(), _without_hooks([act_fn]):
            out = act_fn(probe)
    except Exception:  # whatever it is, it is no activation of one tensor
        return None
    # Exact GELU differs from the tanh form by up to 5e-4.
    for activation in typing.get_args(Activation):
        if torch.allclose(out, reference.activate(probe, activation), atol=1e-5):
            return activation
    return None


@torch.no_grad()
def _why_not(ffn: Ffn, forward: _FusedForward) -> str | None:
    """Why ours cannot stand for the module's own forward pass, or None where it can: both run on
    two made-up tokens, without hooks.
    """
    weight, (_, hidden_size) = ffn.down.weight, features(ffn.inputs[0])
    # A quantised layer's weight may be of integers; its activations are not.
    dtype = weight.dtype if weight.dtype in TOLERANCE else torch.bfloat16
    # Values that look random without drawing from the user's random number generator.
    tokens = torch.sin(torch.arange(2.0 * hidden_size) * 12.9898).view(1, 2, -1)
    hidden = tokens.to(_device(ffn), dtype)
    token = _checking.set(True)
    try:
        with _without_hooks([*ffn.inputs, ffn.down, ffn.act_fn]):
            expected, ours = ffn.module.forward(hidden), forward(hidden)
            difference = (ours.double() - expected.double()).norm() / expected.double().norm()
    except Exception as error:  # somebody else's module may raise anything
        return f"{type(error).__name__}: {error}"
    finally:
        _checking.reset(token)
    # With NaN weights the difference is NaN, which this comparison lets pass: not its matter.
    if expected.shape != ours.shape or difference > TOLERANCE.get(expected.dtype, 1e-1):
        return f"it does not compute down(act(gate){' * up' if ffn.gated else ''})"
    return None


@contextmanager
def _without_hooks(modules: list[Any]) -> Iterator[None]:
    """Take the hooks off these modules for a while: they should not see made-up tokens."""
    modules = [module for module in modules if isinstance(module, nn.Module)]
    kept = [(module, module._forward_hooks, module._forward_pre_hooks) for module in modules]
    for module in modules:
        module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, hooks, pre_hooks in kept:
            module._forward_hooks, module._forward_pre_hooks = hooks, pre_hooks


@contextmanager
def _swapped(module: nn.Module, forward: _FusedForward) -> Iterator[None]:
    """Put another forward on one module. Where accelerate has wrapped ``forward`` in its hooks, the
    original is ``_old_forward``: that one is replaced, and the hooks stay around ours.
    """
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
def _hooked(ffn: Ffn, statistics: FfnStatistics, name: str) -> Iterator[None]:
    """Take the statistics of what enters the down projection, by a hook."""

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # A pre-hook's return value replaces the input: this one must return nothing.
        if statistics.enabled and not _checking.get() and not is_recomputation():
            mask = statistics.token_mask
            mask_T = None if mask is None else mask.reshape(-1).to(args[0].device)
            reference.add_neuron_sums_(
                statistics.sums[name].tensors(), args[0].detach().flatten(0, -2), mask_T
            )

    handle = ffn.down.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _device(ffn: Ffn) -> torch.device:
    """Where the FFN computes: its weights' device, or accelerate's execution device where they are
    offloaded.
    """
    hook = getattr(ffn.module, "_hf_hook", None) or getattr(ffn.down, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else ffn.down.weight.device
