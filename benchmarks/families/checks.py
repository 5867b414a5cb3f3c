"""Is a compressed model what it should be? On a tiny random model of one configuration.

Neurons: the compacted model computes what the original does with the removed neurons' activations
set to zero. Layers: what the original does with the dropped layers skipped. Experts: what it does
when no token can go to the others. Each is then saved,
and loaded again by plain transformers with no weight missing or left over, and must compute the
same, and generate the same tokens with a cache and without.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.families.configs import VOCABULARY, Tiny
from benchmarks.families.unrouted import unrouted
from ptl_fast.config.prune import PruneSettings
from ptl_fast.data.packing import pack
from ptl_fast.model import families, layers, support
from ptl_fast.model.routing import find_routed
from ptl_fast.model.widths import ffn_width, num_experts
from ptl_fast.pruning.compact import compact_
from ptl_fast.pruning.plan import PruningPlan
from ptl_fast.run import layer_choice
from ptl_fast.scoring.statistics import collect

TOLERANCE = 2e-5  # largest difference of logits, as a share of the largest logit, in float32
EXACT = "exact"
# More parameters than this, and a configuration is not tiny: it would take long, and much memory.
LARGEST = 30e6
NEW_TOKENS = 5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a configuration."""

    label: str
    neurons: str
    """EXACT, or why neurons cannot be removed."""
    layers: str
    """EXACT, or why layers cannot be removed."""
    experts: str = ""
    """EXACT, or why whole experts cannot be removed; empty: it has none."""
    generation: str = ""
    """Where generating with a cache could not be compared: why."""

    @property
    def tried(self) -> tuple[str, str, str]:
        """What became of each kind of removal."""
        return self.neurons, self.layers, self.experts

    @property
    def wrong(self) -> bool:
        """Whether a result is not what it should be, and nobody would have said so."""
        return any(each.startswith(("WRONG", "ERROR")) for each in self.tried)


def check(tiny: Tiny) -> Outcome:
    """Remove neurons, and layers, from a model of this configuration, and compare."""
    try:
        config = tiny.config()
        number = sum(parameter.numel() for parameter in layers.on_meta(config).parameters())
    except Exception as error:  # transformers raises many types for a config that it refuses
        reason = f"no tiny model: {_in_short(error)}"
        return Outcome(label=tiny.label, neurons=reason, layers=reason)
    if number > LARGEST:
        reason = f"no tiny model: {number / 1e6:.0f} M parameters at least"
        return Outcome(label=tiny.label, neurons=reason, layers=reason)
    original = make(config)
    if why := _why_no_original(original):
        reason = f"no tiny model: {why}"
        return Outcome(label=tiny.label, neurons=reason, layers=reason)
    can_generate = _why_no_generation(original)
    return Outcome(
        label=tiny.label,
        neurons=_outcome(without_neurons, config, not can_generate),
        layers=_outcome(without_layers, config, not can_generate),
        experts=check_experts(tiny, generates=not can_generate),
        generation=can_generate,
    )


def check_experts(tiny: Tiny, *, generates: bool) -> str:
    """Remove experts from a model of this configuration, and compare; empty: it has none."""
    config = tiny.config()
    return _outcome(without_experts, config, generates) if num_experts(config) else ""


def make(config: Any) -> Any:
    """A random float32 model, whose biases and norms are random too."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def without_neurons(config: Any, generates: bool = True) -> None:
    """Remove a third of the neurons, others in each layer.

    Raises:
        ValueError: they cannot be removed.
        AssertionError: the result is wrong.
    """
    model = make(config)
    family = families.find_family(model)
    width, number = ffn_width(model.config), len(families.decoder_layers(model, family))
    num_ffns = len(families.feed_forwards(model, family))  # experts are each one of their own
    _collect(model, family)
    generator = torch.Generator().manual_seed(2)
    kept = [
        torch.randperm(width, generator=generator)[: width * 2 // 3].sort().values.tolist()
        for _ in range(num_ffns)
    ]
    with _masked(model, family, kept):
        expected = logits(model)
    plan = _plan(kind="neurons", width=len(kept[0]), num_layers=number, kept_neurons=kept)
    compact_(model, family, plan)
    assert ffn_width(model.config) == len(kept[0]), "the config has another width"
    _same(model, expected, generates)


def without_layers(config: Any, generates: bool = True) -> None:
    """Remove a layer from the middle.

    Raises:
        ValueError: none can be removed.
        AssertionError: the result is wrong.
    """
    layer_choice.check(PruneSettings(keep=1.0, drop_layers=1, keep_attention_pattern=False), config)
    model = make(config)
    family = families.find_family(model, needs_neurons=False)
    number = len(families.decoder_layers(model, family))
    staying = layers.layers_that_stay(config, family.layers)
    dropped = next(layer for layer in (2, *range(number)) if layer not in staying)
    _collect(model, family)
    with _skipped(families.decoder_layers(model, family)[dropped]):
        expected = logits(model)
    width = ffn_width(model.config)
    plan = _plan(kind="layers", width=width, num_layers=number - 1, dropped_layers=[dropped])
    compact_(model, family, plan)
    _same(model, expected, generates)


def without_experts(config: Any, generates: bool = True) -> None:
    """Remove an expert from each layer that has some, another in each.

    Raises:
        ValueError: none can be removed.
        AssertionError: the result is wrong.
    """
    support.check_support(config, "tiny", needs_neurons=False, drops_experts=True)
    model = make(config)
    family = families.find_family(model)
    mixtures, number = find_routed(model, family.layers), num_experts(model.config)
    _collect(model, family)
    kept = [
        [each for each in range(number) if each != place % number] for place in range(len(mixtures))
    ]
    with unrouted(model, mixtures, kept):
        expected = logits(model)
    plan = _plan(
        kind="experts",
        width=ffn_width(model.config),
        num_layers=len(families.decoder_layers(model, family)),
        num_experts=number - 1,
        kept_experts=kept,
    )
    compact_(model, family, plan)
    assert num_experts(model.config) == number - 1, "the config has another number of experts"
    _same(model, expected, generates)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """The logits of two sequences."""
    return model(input_ids=_prompt(24), use_cache=False).logits


def generated(model: Any, use_cache: bool) -> Tensor:
    """Tokens that follow a prompt, greedily."""
    prompt = _prompt(8)
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=use_cache,
    )


def _prompt(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (2, length), generator=generator)


def _collect(model: Any, family: families.Family) -> None:
    """One pass for statistics: the model must take our batches."""
    tokens = pack([_prompt(24)[row].tolist() for row in range(2)], 24, 1, "random tokens")
    collect(model, family, tokens, 2)


def _outcome(attempt: Callable[[Any, bool], None], config: Any, generates: bool) -> str:
    """EXACT, or what the attempt says."""
    try:
        attempt(config, generates)
    except AssertionError as error:
        return f"WRONG: {error}"
    except ValueError as error:
        return _in_short(error)
    except Exception as error:  # a traceback is what no configuration may give
        return f"ERROR: {type(error).__name__}: {_in_short(error)}"
    return EXACT


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _why_no_original(model: Any) -> str:
    """Why transformers itself cannot run, save and load the original; empty: it can."""
    try:
        _same(model, logits(model), generates=False)
    except AssertionError:
        return "what transformers saves of it, it loads as another model"
    except Exception as error:  # many types
        return _in_short(error)
    return ""


def _why_no_generation(model: Any) -> str:
    """Why the original's own generation cannot be compared; empty: it can."""
    try:
        equal = torch.equal(generated(model, True), generated(model, False))
    except Exception as error:  # many types
        return f"the original cannot generate both ways ({type(error).__name__})"
    return "" if equal else "the original generates other tokens with a cache"


def _same(model: Any, expected: Tensor, generates: bool) -> None:
    """Assert that a compressed model computes this, and so does what is saved and loaded."""
    from transformers import AutoModelForCausalLM

    _near(logits(model), expected, "the compacted model differs from the masked one")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    again, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind} when it is loaded again: {sorted(map(str, info[kind]))[:2]}"
    assert again.num_parameters() == model.num_parameters(), "another number of parameters"
    _near(logits(again.eval()), expected, "the loaded model differs from the compacted one")
    if generates:
        equal = torch.equal(generated(again, True), generated(again, False))
        assert equal, "it generates other tokens with a cache"


def _near(found: Tensor, expected: Tensor, message: str) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= TOLERANCE, f"{message} by {error:.1e}"


def _plan(**fields: Any) -> PruningPlan:
    return PruningPlan(**{"round": 1, "scorer": "", "kept_neurons": None, **fields})


@contextmanager
def _masked(model: Any, family: families.Family, kept: list[list[int]]) -> Iterator[None]:
    """Inside, the activations of neurons that are not kept are zero."""

    def mask(keeps_I: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * keeps_I, *args[1:])

    ffns = families.feed_forwards(model, family).values()
    with ExitStack() as stack:
        for ffn, each in zip(ffns, kept, strict=True):
            keeps_I = torch.zeros(ffn.width)
            keeps_I[each] = 1
            stack.callback(ffn.down.register_forward_pre_hook(partial(mask, keeps_I)).remove)
        yield


@contextmanager
def _skipped(layer: nn.Module) -> Iterator[None]:
    """Inside, the layer passes its input on."""

    def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple | list) else before

    handle = layer.register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
