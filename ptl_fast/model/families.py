"""Where a model keeps its decoder layers and their feed-forward networks (FFNs).

Nothing of this goes by a model's name: the decoder layers are the one list that is as long as the
config says, and an FFN is found by the names of its projections, of which FFNS has all forms. A
form that is not there gets one row. Where a config holds the FFN's width is in ``model.widths``.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ptl_fast.model.layers import follow_layers
from ptl_fast.model.widths import ffn_width, num_experts, set_num_experts, set_width

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from ptl_fast.model.experts import Mixture
    from ptl_kernels import Ffn


@dataclass(frozen=True, kw_only=True)
class FfnNames:
    """Attribute paths of an FFN's modules, from a decoder layer."""

    module: str | None = "mlp"
    """What computes the FFN and nothing else; None if that is part of the layer's own forward."""
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """The input projections: gate and up; one that fuses them, gate's rows first; or the only one
    of an FFN without a gate.
    """
    down: str = "mlp.down_proj"
    """The output projection."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a model's layers and FFNs are."""

    layers: str = "model.layers"
    """Path of the list of decoder layers, from the model."""
    ffn: FfnNames | None = None
    """The FFN's names in every layer; None where neurons cannot be removed, and with experts."""
    mixture: "Mixture | None" = None
    """What has the experts' width, where a model has experts whose neurons can be removed."""
    no_ffn: str | None = None
    """Why neurons cannot be removed."""


STANDARD = FfnNames()
FFNS = (
    STANDARD,
    FfnNames(inputs=("mlp.gate_up_proj",)),  # Phi-3, GLM
    FfnNames(inputs=("mlp.up_proj",)),  # Nemotron, Arcee, Apertus, Jais 2
    FfnNames(inputs=("mlp.fc1",), down="mlp.fc2"),  # Phi, NanoChat
    FfnNames(inputs=("mlp.c_fc",), down="mlp.c_proj"),  # GPT-2 (Conv1D), GPT-Neo, StarCoder2
    FfnNames(inputs=("mlp.fc_in",), down="mlp.fc_out"),  # GPT-J, CodeGen
    FfnNames(inputs=("mlp.dense_h_to_4h",), down="mlp.dense_4h_to_h"),  # GPT-NeoX, Falcon
    FfnNames(  # Falcon-H1, Bamba
        module="feed_forward",
        inputs=("feed_forward.gate_proj", "feed_forward.up_proj"),
        down="feed_forward.down_proj",
    ),
    FfnNames(  # LFM2
        module="feed_forward",
        inputs=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
    ),
    FfnNames(  # Granite hybrids without experts
        module="shared_mlp", inputs=("shared_mlp.input_linear",), down="shared_mlp.output_linear"
    ),
    FfnNames(  # RecurrentGemma
        module="mlp_block",
        inputs=("mlp_block.gate_proj", "mlp_block.up_proj"),
        down="mlp_block.down_proj",
    ),
    FfnNames(module="ffn", inputs=("ffn.up_proj",), down="ffn.down_proj"),  # MPT
    FfnNames(module=None, inputs=("fc1",), down="fc2"),  # OPT, XGLM, BioGPT
)


def find_family(model: "PreTrainedModel", *, needs_neurons: bool = True) -> Family:
    """Find the model's decoder layers and FFNs.

    Args:
        needs_neurons: False where nothing is done to single neurons: then a model will do whose
            FFNs are of no known form.

    Raises:
        ValueError: there is not exactly one list of decoder layers; or neurons are needed and
            cannot be removed. Names what was not found.
    """
    layers = layers_path(model)
    ffn, mixture, reason = _find_ffn(model, layers)
    if needs_neurons and reason is not None:
        raise ValueError(
            f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', '?')}):"
            f" neurons cannot be removed: {reason}; whole layers may go with --keep 1"
            " --drop-layers N"
        )
    return Family(layers=layers, ffn=ffn, mixture=mixture, no_ffn=reason)


def decoder_layers(model: "PreTrainedModel", family: Family) -> "nn.ModuleList":
    """The model's decoder layers, in order."""
    return attrgetter(family.layers)(model)


def feed_forwards(model: "PreTrainedModel", family: Family) -> "dict[str, Ffn]":
    """The FFN of each decoder layer, in order; keys are the layers' indices as strings. With
    experts, each of a layer's experts (``model.experts``); keys are like 3.0, 3.1.

    Empty where the family has no FFNs whose neurons can be removed.
    """
    # imported here, because it imports torch and Triton, and a dry run needs neither
    from ptl_fast.model.experts import named_ffns
    from ptl_kernels import Ffn

    names = family.ffn
    if family.mixture is not None:
        return dict(named_ffns(family.mixture, decoder_layers(model, family)))
    if names is None:
        return {}
    ffns = {}
    for index, layer in enumerate(decoder_layers(model, family)):
        inputs = [attrgetter(path)(layer) for path in names.inputs]
        module = layer if names.module is None else attrgetter(names.module)(layer)
        down = attrgetter(names.down)(layer)
        ffns[str(index)] = Ffn(module=module, inputs=inputs, down=down)
    return ffns


def plain_ffns(model: "PreTrainedModel", family: Family) -> "dict[str, Ffn]":
    """Those of ``feed_forwards`` that are modules of their own, and no experts of a stack."""
    if family.mixture is None:
        return feed_forwards(model, family)
    from ptl_fast.model.experts import is_routed

    every = feed_forwards(model, family)
    return {name: ffn for name, ffn in every.items() if not is_routed(ffn)}


@dataclass(frozen=True)
class DownProjection:
    """The last linear layer of an FFN."""

    module: "nn.Module"
    weight_HI: "Tensor"
    """(hidden_size, width), sharing the module's memory, whatever way round that keeps it."""

    @property
    def bias(self) -> "Tensor | None":
        """(hidden_size,), or None."""
        return self.module.bias  # type: ignore[return-value]


def down_projections(model: "PreTrainedModel", family: Family) -> list[DownProjection]:
    """The down projection of each decoder layer's FFN, in order, of the weights as they are now:
    pruning replaces them.
    """
    from ptl_kernels import matrix

    downs = [ffn.down for ffn in feed_forwards(model, family).values()]
    return [DownProjection(down, matrix(down).detach()) for down in downs]


def layers_path(model: "PreTrainedModel") -> str:
    """The path of the one list of modules that has as many as the config has layers.

    Raises:
        ValueError: there is not exactly one; says why.
    """
    path, reason = find_layers(model)
    if path is None:
        raise ValueError(
            f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', '?')}) is not"
            f" supported: {reason}"
        )
    return path


def find_layers(model: "PreTrainedModel") -> tuple[str | None, str | None]:
    """(path of the list of decoder layers, None), or (None, why they are not found)."""
    from torch.nn import ModuleList

    config: Any = model.config
    # some configs say so although the model is a decoder, such as GPT-NeoX's: modules know better
    says = {
        "is_decoder false": any(vars(each).get("is_decoder") is False for each in model.modules()),
        # PaliGemma; "vision" is about images alone
        "use_bidirectional_attention": getattr(
            config.get_text_config(), "use_bidirectional_attention", None
        )
        in (True, "all"),
    }
    for named in [each for each, is_said in says.items() if is_said]:
        return None, (
            f"its config says {named}, so that its tokens attend to later ones; ptl_fast is for"
            " models that predict the next token"
        )
    number = config.get_text_config().num_hidden_layers
    lists = [path for path, each in model.named_modules() if isinstance(each, ModuleList)]
    # lists inside another one, such as the experts of a layer, are not the layers
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    found = [path for path in outer if len(attrgetter(path)(model)) == number]
    if len(found) == 1:
        return found[0], None
    if found:
        return None, (
            f"{len(found)} of its lists have {number} modules ({', '.join(found)}), so that it is"
            " not clear which are the decoder layers"
        )
    lengths = ", ".join(f"{path} {len(attrgetter(path)(model))}" for path in outer) or "none"
    return None, (
        f"its config says num_hidden_layers {number}, and no list of modules is so long (there are:"
        f" {lengths})"
    )


def _find_ffn(
    model: "PreTrainedModel", layers: str
) -> "tuple[FfnNames | None, Mixture | None, str | None]":
    """(the form of the model's FFNs or None, its experts or None, why neither)."""
    if expert := _experts(model, layers):
        # imported here, because it imports torch
        from ptl_fast.model.mixtures import find_mixture

        mixture, reason = find_mixture(model, layers)
        return None, mixture, reason and f"it is a mixture of experts ({expert}): {reason}"
    names, reason = _find_names(model, layers)
    return names, None, reason


def _find_names(model: "PreTrainedModel", layers: str) -> tuple[FfnNames | None, str | None]:
    """(the form of the model's FFNs, None), or (None, why neurons cannot be removed)."""
    best: tuple[int, str] = (-1, "")
    for names in FFNS:
        missing = _first_missing(model, layers, names)
        if missing is None:
            reason = _why_not(model, layers, names)
            return (names, None) if reason is None else (None, reason)
        # the form that most layers have says best what is missing
        best = max(best, missing, key=lambda each: each[0])
    first, path = best
    if first == 0:
        return None, (
            f"its FFN has other names than those in ptl_fast/model/families.py; looked in"
            f" {layers}.0 for {', '.join((*STANDARD.inputs, STANDARD.down))} and other forms"
        )
    return None, f"looked for the same FFN in every layer, and did not find {path}"


def _first_missing(
    model: "PreTrainedModel", layers: str, names: FfnNames
) -> tuple[int, str] | None:
    """(layer, path) of the first projection of this form that is missing; None: none is."""
    for index, layer in enumerate(attrgetter(layers)(model)):
        for path in (*names.inputs, names.down):
            try:
                found = in_features(attrgetter(path)(layer))
            except AttributeError:
                found = None
            if found is None:
                return index, f"{layers}.{index}.{path}"
    return None


def in_features(linear: "nn.Module") -> int | None:
    """The number of inputs of a linear layer, also of transformers' Conv1D; None: it is none."""
    found = getattr(linear, "in_features", getattr(linear, "nx", None))
    return found if isinstance(found, int) else None


def _why_not(model: "PreTrainedModel", layers: str, names: FfnNames) -> str | None:
    """Why neurons of FFNs of this form cannot be removed; None: they can."""
    blocks = list(attrgetter(layers)(model))
    widths: set[Any] = {in_features(attrgetter(names.down)(layer)) for layer in blocks}
    if len(widths) > 1:
        return f"its FFNs have different widths {sorted(widths)}; uniform width is needed"
    (width,) = widths
    for layer in blocks:
        if tensor := _other_tensor(layer, names, width):
            return f"{tensor} has the FFN's width too, and would have to follow its neurons"
    held = ffn_width(model.config.get_text_config())
    if held != width:
        return (
            f"its FFNs are {width} wide, and no field of its config can say another width"
            if not held
            else f"its FFNs are {width} wide, and its config says {held}"
        )
    return None


def _other_tensor(layer: "nn.Module", names: FfnNames, width: int | None) -> str | None:
    """The path of a tensor in an FFN, besides its projections, that has its width; None: none."""
    if names.module is None:
        return None
    own = {attrgetter(path)(layer) for path in (*names.inputs, names.down)}
    for path, inner in attrgetter(names.module)(layer).named_modules(prefix=names.module):
        for name, tensor in inner.named_parameters(recurse=False):
            if inner not in own and width in tensor.shape:
                return f"{path}.{name}"
    return None


def _experts(model: "PreTrainedModel", layers: str) -> str | None:
    """The path of a model's first experts; None: it has none."""
    for index, layer in enumerate(attrgetter(layers)(model)):
        for path, module in layer.named_modules():
            # JetMoE's are linear layers with a matrix for each expert
            many = path.endswith("experts") or any(
                tensor.dim() == 3 and path.endswith("linear")
                for tensor in module.parameters(recurse=False)
            )
            if many:
                return f"{layers}.{index}.{path}"
    return None


def needs_one_row(model: "PreTrainedModel") -> bool:
    """Whether a batch of packed sequences must be flattened into one row.

    With flash-attention, transformers switches to variable-length attention where positions
    restart, but only in batches of one row.
    """
    return "flash" in (model.config._attn_implementation or "")


def resize_config(
    config: "PretrainedConfig",
    width: int,
    kept_layers: list[int],
    experts: int | None = None,
) -> None:
    """Change a config in place to FFN width ``width`` and only the layers ``kept_layers``.

    Args:
        width: as ``model.widths.ffn_width`` tells it: 0 stays 0.
        kept_layers: indices of the layers that stay, ascending.
        experts: routed experts of each mixture that stay; None: all.
    """
    if width != ffn_width(config):
        set_width(config, width)
    if experts is not None and experts != num_experts(config):
        set_num_experts(config, experts)
    if len(kept_layers) < config.num_hidden_layers:
        follow_layers(config, kept_layers)
