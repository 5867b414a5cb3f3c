"""Convert a Gemma 2 for CTranslate2 with the windows, scale and cap of its config.json.

    python -m benchmarks.inference.ctranslate2_windows MODEL FOLDER

CTranslate2's own converter (4.8.5) writes none of them, so that every layer attends to everything.
The engine can do better: an attention block with a window forgets what lies beyond it, token by
token. A prompt in one pass it does not mask, so that a prompt longer than the window must be read a
token at a time: generate_batch(..., include_prompt_in_result=True). A cap on attention's scores
(attn_logit_softcapping) it does not have.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy
from transformers import AutoConfig

from benchmarks.harness.results import errors_in_one_line

TOKENS = ("bos_token", "eos_token", "unk_token")


def set_attention(decoder: Any, config: Any) -> None:
    """Give a converted decoder's layers what config.json says of their attention, in place.

    Args:
        decoder: of a TransformerDecoderModelSpec, a layer for each in the config.
        config: of a Gemma 2.
    """
    scale = numpy.dtype("float32").type(config.query_pre_attn_scalar**-0.5)
    for layer, kind in zip(decoder.layer, config.layer_types, strict=True):
        window = config.sliding_window if kind == "sliding_attention" else 0
        layer.self_attention.queries_scale = scale
        # the engine reads it of every attention block; the converter's class lets none be added
        number = numpy.dtype("int32").type(window or 0)
        object.__setattr__(layer.self_attention, "sliding_window", number)
    if cap := config.final_logit_softcapping:
        decoder.final_logit_softcapping = numpy.dtype("float32").type(cap)


def convert(model: Path, folder: Path) -> None:
    """Convert a model's folder; the tokenizer's file is copied beside it.

    Raises:
        ValueError: the model is no Gemma 2, or there is such a folder already.
        OSError: the folder holds no model.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; name another folder")
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    if config.model_type != "gemma2":
        raise ValueError(
            f"{model} is of type {config.model_type}, and only gemma2 is known here; use"
            " ct2-transformers-converter"
        )

    from ctranslate2.converters import transformers as converters

    class Loader(converters.Gemma2Loader):
        def get_model_spec(self, model: Any) -> Any:
            spec = super().get_model_spec(model)
            set_attention(spec.decoder, config)
            return spec

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            super().set_config(config, model, tokenizer)
            # a tokenizer without one of them; null is "type must be string, but is null" at loading
            for name in TOKENS:
                if getattr(config, name) is None:
                    setattr(config, name, "")

    converters.register_loader("Gemma2Config")(Loader)
    converter = converters.TransformersConverter(str(model), copy_files=["tokenizer.json"])
    converter.convert(str(folder))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="where the converted model goes")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        convert(options.model, options.folder)


if __name__ == "__main__":
    main()
