"""Whether a model can be pruned, and if not, why and what helps; from its config alone.

CHECKS is a plain table: each row finds one thing that cannot be pruned, and says what to do about
it. A row goes once its thing is supported. What is asked for decides which rows count: a model
whose neurons cannot go may well lose layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptl_fast.model import skeleton
from ptl_fast.model.skeleton import Resized, Skeleton

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

NEURONS, LAYERS = frozenset({"neurons"}), frozenset({"layers"})
BOTH = NEURONS | LAYERS
# Dropping layers looks for the FFNs too (families.find_family); once it does not, this is NEURONS.
FFNS = BOTH
ALONE = {"layers": "--keep 1 --drop-layers N", "neurons": "--keep without --drop-layers"}
"""How to ask for one kind of thing alone."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a model may have and that cannot be pruned."""

    concerns: frozenset[str]
    """What it rules out: "neurons", "layers" or both."""
    find: Callable[[Skeleton], str | None]
    """What of the model shows it, in words; None if it is not there."""
    remedy: str
    """What to do about it."""


def check_support(config: "PretrainedConfig", name: str, wanted: frozenset[str]) -> None:
    """Check that a model can lose what the settings ask for.

    Args:
        config: the model's.
        name: the model's, for the error.
        wanted: what shall go, of "neurons" and "layers".

    Raises:
        ValueError: it cannot; says what stands in the way, and what helps.
    """
    look = Skeleton(config)
    found = _first(look, wanted)
    if found is None:
        return
    reason, remedy = found
    # what remains of the wish, or the other thing, may be possible alone
    for alone, how in ALONE.items():
        if _first(look, frozenset({alone})) is None:
            remedy += f"; its {alone} can go ({how})"
    raise ValueError(
        f"--model {name} (model_type {config.model_type}) is not supported: {reason}; {remedy}"
    )


def _first(look: Skeleton, wanted: frozenset[str]) -> tuple[str, str] | None:
    """(what was found, what helps) of the first row of CHECKS that rules out what is wanted."""
    for check in CHECKS:
        reason = check.find(look) if check.concerns & wanted else None
        if reason is not None:
            return reason, check.remedy
    return None


def _has_encoder(look: Skeleton) -> str | None:
    return "it is an encoder with a decoder" if look.config.is_encoder_decoder else None


def _is_wrapper(look: Skeleton) -> str | None:
    text = look.config.get_text_config()
    if text is look.config:
        return None
    return (
        "it is a model of several parts, of which the text decoder"
        f" ({getattr(text, 'model_type', 'text_config')}) is one"
    )


def _is_no_language_model(look: Skeleton) -> str | None:
    from transformers import AutoModelForCausalLM

    if type(look.config) in AutoModelForCausalLM._model_mapping:
        return None
    return "transformers has no causal language model of this type"


def _cannot_be_built(look: Skeleton) -> str | None:
    try:
        look.model  # noqa: B018  built at the first access
    except Exception as error:  # model classes raise many types for a config that is wrong
        return f"transformers cannot build it from its config.json: {' '.join(str(error).split())}"
    return None


def _has_no_layers(look: Skeleton) -> str | None:
    if look.layers:
        return None
    return f"it has no list of {look.config.num_hidden_layers} decoder layers"


def _has_experts(look: Skeleton) -> str | None:
    """FFNs of which each token uses a few: a list of them, or their matrices stacked in one."""
    counts = {
        value
        for field, value in vars(look.config).items()
        if "expert" in field and isinstance(value, int)
    }
    for index, layer in enumerate(look.layers):
        for name, parameter in layer.named_parameters():
            is_stack = parameter.dim() == 3 and parameter.shape[0] in counts
            if "expert" in name or is_stack:
                return f"it is a mixture of experts ({_stem(name)} of layer {index})"
    return None


def _has_no_width(look: Skeleton) -> str | None:
    if look.family is not None or _tensors(look):
        return None
    return "no field of its config sets the width of an FFN"


def _lacks_ffns(look: Skeleton) -> str | None:
    without = [str(index) for index, layer in enumerate(look.of_width) if not layer]
    if look.family is not None or not without or len(without) == len(look.layers):
        return None
    return f"some of its layers have no FFN ({', '.join(without[:4])})"


def _has_own_widths(look: Skeleton) -> str | None:
    """Different widths in different layers, for which the config may have lists or factors."""
    grown = [_growth(layer) for layer in look.of_width]
    if look.family is not None or len(set(grown)) < 2:
        return None
    return f"its FFNs differ in width from layer to layer ({_names(look)})"


def _has_no_ffn(look: Skeleton) -> str | None:
    """What has the width are not an FFN's projections: a state-space layer's, or shared ones."""
    matrices = _matrices(look)
    inputs = [each for each in matrices if each.is_input]
    is_ffn = len(inputs) in (1, 2) and len(matrices) == len(inputs) + 1
    if look.family is not None or (is_ffn and all(each.is_linear for each in matrices)):
        return None
    return f"the width in its config is not that of an FFN alone ({_names(look)})"


def _has_no_gate(look: Skeleton) -> str | None:
    inputs = [each for each in _matrices(look) if each.is_input]
    if look.family is not None or len(inputs) != 1 or _is_fused(look, inputs[0]):
        return None
    return f"its FFNs have no gate ({_names(look)})"


def _has_other_names(look: Skeleton) -> str | None:
    if look.family is not None:
        return None
    return (
        f"its gated FFNs have other names ({_names(look)}) than gate_proj, up_proj and down_proj in"
        " mlp"
    )


def _lacks_sizes(look: Skeleton) -> str | None:
    """Sizes that are no single number, such as widths of their own for each layer."""
    wanted = ("intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_size")
    missing = [each for each in wanted if not isinstance(getattr(look.config, each, None), int)]
    return f"its config has no single number for {', '.join(missing)}" if missing else None


def _has_more_of_width(look: Skeleton) -> str | None:
    """Tensors of the FFN's width beside its three projections, such as a norm before the last."""
    family = look.family
    if family is None:
        return None
    for index, resized in enumerate(look.of_width):
        names = {
            f"{path}.{end}" for path in (*family.inputs, family.down) for end in ("weight", "bias")
        }
        for each in resized:
            if each.name not in names:
                return (
                    f"{each.name} of layer {index} has the FFN's width too, and what it computes of"
                    " all neurons together changes when some go"
                )
    return None


def _has_joint_activation(look: Skeleton) -> str | None:
    """Gemma 3n zeroes activations by their mean and deviation over the width."""
    pattern = getattr(look.config, "activation_sparsity_pattern", None) or []
    pattern = pattern if isinstance(pattern, list | tuple) else [pattern]
    if any(pattern):
        return "which of its activations are zeroed depends on all neurons (activation sparsity)"
    return None


def _has_parts_by_layer(look: Skeleton) -> str | None:
    """Parameters outside the layers with a part for each of them, such as per-layer inputs."""
    other = look.without_first_layer
    if other is None:
        return None
    ours, theirs = _outside(look), _outside(other)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            return f"{name} has a part for each layer"
    return None


def _has_pattern(look: Skeleton) -> str | None:
    return _compare_places(look, skeleton.different_structure)


def _has_value_by_place(look: Skeleton) -> str | None:
    return _compare_places(look, skeleton.different_value)


def _breaks_without_layer(look: Skeleton) -> str | None:
    if look.without_first_layer is None:
        return None
    try:
        look.without_first_layer.model  # noqa: B018  built at the first access
    except Exception as error:  # model classes raise many types
        return f"its config allows no other number of layers: {' '.join(str(error).split())}"
    return None


def _compare_places(
    look: Skeleton, differ: "Callable[[nn.Module, nn.Module], str | None]"
) -> str | None:
    """The first layer that is another one a place further up, where dropping would put it."""
    other = look.without_first_layer
    if other is None:
        return None
    for index, (layer, moved) in enumerate(
        zip(look.layers[1:], other.layers, strict=True), start=1
    ):
        found = differ(layer, moved)
        if found is not None:
            return f"its layers differ by their place: in layer {index}, {found}"
    return None


def _outside(look: Skeleton) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters outside the decoder layers."""
    inside = {id(parameter) for layer in look.layers for parameter in layer.parameters()}
    return {
        name: tuple(parameter.shape)
        for name, parameter in look.model.named_parameters()
        if id(parameter) not in inside
    }


def _tensors(look: Skeleton) -> list[Resized]:
    """What has the FFN's width in one layer: the first that has anything of it."""
    return next((layer for layer in look.of_width if layer), [])


def _matrices(look: Skeleton) -> list[Resized]:
    """The matrices among them."""
    return [each for each in _tensors(look) if each.is_matrix]


def _growth(layer: list[Resized]) -> int:
    """By how many neurons a layer grows with its config's width; its output projections'."""
    outputs = [each for each in layer if each.is_matrix and not each.is_input]
    return sum(sum(each.after) - sum(each.before) for each in outputs)


def _is_fused(look: Skeleton, projection: Resized) -> bool:
    """Whether one input projection holds gate and up: it is twice as wide as the output one."""
    down = [each for each in _matrices(look) if not each.is_input]
    grown = [sum(each.after) - sum(each.before) for each in (projection, *down)]
    return len(grown) == 2 and grown[0] == 2 * grown[1]


def _names(look: Skeleton) -> str:
    """The modules of the FFN's width, the first few of them, and where they are."""
    names = [_stem(each.name) for each in _matrices(look)]
    return f"{', '.join(names[:3] + ['...'] * (len(names) > 3))} in {look.path}"


def _stem(name: str) -> str:
    """A parameter's module."""
    return name.removesuffix(".weight")


STAY = "its layers must all stay"
CHECKS = (
    Check(concerns=BOTH, find=_has_encoder, remedy="give a model that is a decoder alone"),
    Check(
        concerns=BOTH,
        find=_is_wrapper,
        remedy="take out the text decoder first, as docs/checkpoints.md shows, and give that one",
    ),
    Check(
        concerns=BOTH,
        find=_is_no_language_model,
        remedy="give a model that AutoModelForCausalLM loads without trust_remote_code",
    ),
    Check(concerns=BOTH, find=_cannot_be_built, remedy="mend config.json, or copy the model again"),
    Check(
        concerns=BOTH,
        find=_has_no_layers,
        remedy="give a transformer with one list of decoder layers",
    ),
    Check(concerns=FFNS, find=_has_experts, remedy="experts are not pruned: give a dense model"),
    Check(
        concerns=FFNS,
        find=_has_no_width,
        remedy="a smaller FFN could not be saved: give a model whose config has such a field",
    ),
    Check(concerns=FFNS, find=_lacks_ffns, remedy="give a model that has one in every layer"),
    Check(concerns=FFNS, find=_has_own_widths, remedy="one width is needed: give such a model"),
    Check(concerns=FFNS, find=_has_no_ffn, remedy="give a transformer with FFNs of its own"),
    Check(
        concerns=FFNS,
        find=_has_no_gate,
        remedy="only gated FFNs are pruned: give a model with them",
    ),
    Check(
        concerns=FFNS,
        find=_has_other_names,
        remedy="a row in ptl_fast/model/families.py can name them",
    ),
    Check(concerns=FFNS, find=_lacks_sizes, remedy="give a model whose config has them"),
    Check(
        concerns=NEURONS,
        find=_has_more_of_width,
        remedy="give a model with nothing between activation and down projection",
    ),
    Check(concerns=NEURONS, find=_has_joint_activation, remedy="give a model without it"),
    Check(concerns=LAYERS, find=_breaks_without_layer, remedy=STAY),
    Check(concerns=LAYERS, find=_has_parts_by_layer, remedy=STAY),
    Check(concerns=LAYERS, find=_has_pattern, remedy=STAY),
    Check(concerns=LAYERS, find=_has_value_by_place, remedy=STAY),
)
