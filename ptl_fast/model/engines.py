"""What inference engines cannot say of a model whose layers were dropped, or that has experts.

transformers reads from config.json which layers attend to a window, and which have no positions.
Some engines do not: they take it from a layer's number, as the family's original has it. Without
some layers the others have other numbers, and the engine computes another model without a word. So
it is with the layers that have experts, and with how a router's weights are made.

Where an engine follows config.json there is no entry here, and none where nobody looked: the table
has what was read in the sources that it names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Where the sources were read. llama.cpp's converter (conversion/) writes no list of layers for
# these families, so that load_swa_pattern and n_no_rope_layer_step in src/models/ decide.
VERSIONS = {
    "llama.cpp": "as in the source package of llama-cpp-python 0.3.36",
    "CTranslate2": "4.8.5",
    "vLLM": "0.33.0",
    "SGLang": "0.5.23",
}
_ORDINALS = {2: "second", 4: "fourth", 6: "sixth"}


@dataclass(frozen=True)
class Assumption:
    """What an engine takes for granted about the layers of a family."""

    engine: str
    field: str
    """The list in the config, with one entry a layer, that the engine does not read."""
    stands: Callable[[Any], bool]
    """Whether an entry of that list is the special kind (a window; a position)."""
    expected: Callable[[int], bool]
    """Whether the engine takes the layer of this number for that kind."""
    words: str
    """What the engine assumes, to follow "assumes that"."""
    source: str


def _every(period: int) -> Callable[[int], bool]:
    """All layers but the last of each ``period``: llama_hparams::set_swa_pattern."""
    return lambda layer: layer % period < period - 1


def _slides(kind: Any) -> bool:
    return kind in ("sliding_attention", "chunked_attention")


def _window(period: int, source: str, engine: str = "llama.cpp") -> Assumption:
    """A window on all layers but the last of each ``period``."""
    return Assumption(
        engine=engine,
        field="layer_types",
        stands=_slides,
        expected=_every(period),
        words=f"every {_ORDINALS[period]} layer, and no other, attends to everything",
        source=f"{source} ({VERSIONS[engine]})",
    )


def _positions(source: str, engine: str = "llama.cpp") -> Assumption:
    """Rotary positions in all layers but every fourth."""
    return Assumption(
        engine=engine,
        field="no_rope_layers",  # which says 1 of the layers that have positions
        stands=bool,
        expected=_every(4),
        words="every fourth layer, and no other, has no rotary positions",
        source=f"{source} ({VERSIONS[engine]})",
    )


ASSUMPTIONS: dict[str, tuple[Assumption, ...]] = {
    "afmoe": (_window(4, "src/models/afmoe.cpp"),),
    "cohere2": (_window(4, "src/models/cohere2.cpp"),),
    "gemma2": (
        _window(2, "src/models/gemma2.cpp"),
        _window(2, "sglang/srt/models/gemma2.py: layer_id % 2 == 0", "SGLang"),
        Assumption(
            engine="CTranslate2",
            field="layer_types",
            stands=_slides,
            expected=lambda _: False,
            words="every layer attends to everything, also in the original",
            # benchmarks/inference/ctranslate2_windows.py writes the windows, which the engine keeps
            # where it reads a prompt token by token
            source="converters/transformers.py: Gemma2Loader has no window (4.8.5)",
        ),
    ),
    "gemma3_text": (_window(6, "src/models/gemma3.cpp"),),
    "gpt_oss": (
        _window(2, "src/models/openai-moe.cpp"),
        _window(2, "vllm/model_executor/models/gpt_oss.py: layer_idx % 2 == 0", "vLLM"),
    ),
    "llama4_text": (
        _window(4, "src/models/llama4.cpp"),
        _positions("src/models/llama4.cpp"),
        _positions("sglang/srt/models/llama4.py: (layer_id + 1) % 4 != 0", "SGLang"),
    ),
    "smollm3": (_positions("src/models/smollm3.cpp"),),
}
"""{model_type: what engines assume about its layers}."""


@dataclass(frozen=True)
class Routing:
    """What an engine takes for granted about the experts of a type."""

    wrong: Callable[[Any], str | None]
    """From a config, what it assumes ("assumes that ...") and how this model differs; None: it does
    not.
    """
    remedy: str
    source: str
    engine: str = "llama.cpp"


OTHER_ENGINE = "The original has this too: serve both by another engine"


SCORES = ("scoring_func", "score_function", "score_func")
"""Fields in which llama.cpp's converter looks for the function of a router's logits."""


def _has_dense_layers(config: Any) -> str | None:
    step = getattr(config, "decoder_sparse_step", None) or 1
    if getattr(config, "mlp_only_layers", None) or step > 1:
        return "every layer has experts, and here some have none"
    return None


def _weights_sum(to_one: bool) -> Callable[[Any], str | None]:
    def wrong(config: Any) -> str | None:
        if bool(getattr(config, "norm_topk_prob", False)) == to_one:
            return None
        words = ("are not scaled to a sum of 1", "are scaled to a sum of 1")
        return (
            f"the weights of a token's experts {words[to_one]}, and here they {words[not to_one]}"
        )

    return wrong


def _says_no_sigmoid(config: Any) -> str | None:
    if any(getattr(config, name, None) == "sigmoid" for name in SCORES):
        return None
    return (
        "a router's weights are a softmax unless config.json says scoring_func sigmoid, and here it"
        " does not"
    )


def _other_interleave(config: Any) -> str | None:
    step, own = config.interleave_moe_layer_step, getattr(config, "moe_layers", None)
    if own is None or list(own) == list(range(step - 1, config.num_hidden_layers, step)):
        return None
    return (
        f"the layers that have experts are numbers {step - 1}, {2 * step - 1} and so on, and here"
        f" they are {list(own)}"
    )


def _of_qwen(source: str, sums_to_one: bool) -> tuple[Routing, ...]:
    return (
        Routing(_has_dense_layers, OTHER_ENGINE, source),
        Routing(_weights_sum(sums_to_one), OTHER_ENGINE, source),
    )


ROUTINGS: dict[str, tuple[Routing, ...]] = {
    "deepseek_v3": (
        Routing(
            _says_no_sigmoid,
            'Add "scoring_func": "sigmoid" to config.json, which transformers does not read',
            "conversion/base.py and src/models/deepseek2.cpp",
        ),
    ),
    "llama4_text": (
        Routing(
            _other_interleave,
            "Compress again with --layers that go in groups of this period",
            "src/models/llama4.cpp: (i + 1) % n_moe_layer_step == 0",
        ),
    ),
    "olmoe": (Routing(_weights_sum(False), OTHER_ENGINE, "src/models/olmoe.cpp"),),
    "qwen2_moe": _of_qwen("src/models/qwen2moe.cpp", sums_to_one=False),
    "qwen3_moe": _of_qwen("src/models/qwen3moe.cpp", sums_to_one=True),
}
"""{model_type: what engines assume about its experts}."""


def misread_by(config: Any, engine: str | None = None) -> list[str]:
    """Say in one sentence each what engines would compute wrongly for a model of this config.

    Args:
        config: of the finished model, with its own lists.
        engine: only this one; None: all in the tables.
    """
    return misread_layers(config, engine) + [told for told, _ in misrouted(config, engine)]


def misread_layers(config: Any, engine: str | None = None) -> list[str]:
    """The same of its layers alone, for which a config need have no more than their lists."""
    return [
        f"{each.engine} cannot represent this model: it assumes that {each.words}, and here layer"
        f" {layer} is different."
        for each in ASSUMPTIONS.get(config.model_type, ())
        if engine in (None, each.engine) and (layer := _first_wrong(config, each)) is not None
    ]


def misrouted(config: Any, engine: str | None = None) -> list[tuple[str, str]]:
    """The same of its experts alone: (the sentence, what helps)."""
    return [
        (f"{each.engine} cannot represent this model: it assumes that {wrong}.", each.remedy)
        for each in ROUTINGS.get(config.model_type, ())
        if engine in (None, each.engine) and (wrong := each.wrong(config)) is not None
    ]


def may_misread(config: Any, known: frozenset[str] = frozenset()) -> list[str]:
    """Say what engines assume about the layers of a config's family, where layers are to go.

    Args:
        config: of the original.
        known: lists of the config that are known to stay as the engines assume.
    """
    return [
        f"{each.engine} assumes that {each.words}: where other layers go, it misreads the result."
        for each in ASSUMPTIONS.get(config.model_type, ())
        if each.field not in known and getattr(config, each.field, None)
    ]


def _first_wrong(config: Any, assumption: Assumption) -> int | None:
    """The first layer that the engine takes for another kind than it is."""
    entries: Sequence[Any] = getattr(config, assumption.field, None) or ()
    # without a window's length the kinds make no difference
    if assumption.stands is _slides and not _has_window(config):
        return None
    for layer, entry in enumerate(entries):
        if assumption.stands(entry) != assumption.expected(layer):
            return layer
    return None


def _has_window(config: Any) -> bool:
    names = ("sliding_window", "attention_chunk_size")
    return any(getattr(config, name, None) for name in names)
