"""What a conversion for CTranslate2 says of attention, and that the engine then computes it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from benchmarks.inference import ctranslate2_windows, engines, windowed_models
from ptl_fast.demo import __file__ as demo

LLAMA = Path(demo).parent / "model"


def test_each_layer_gets_the_window_of_its_own_kind() -> None:
    full, sliding = "full_attention", "sliding_attention"
    config = AutoConfig.for_model(
        "gemma2",
        num_hidden_layers=3,
        layer_types=[full, sliding, full],
        sliding_window=7,
        query_pre_attn_scalar=64,
        final_logit_softcapping=30.0,
    )
    layers = [SimpleNamespace(self_attention=SimpleNamespace()) for _ in range(3)]
    decoder = SimpleNamespace(layer=layers)
    ctranslate2_windows.set_attention(decoder, config)
    assert [layer.self_attention.sliding_window for layer in layers] == [0, 7, 0]
    assert [layer.self_attention.queries_scale for layer in layers] == [0.125] * 3
    assert decoder.final_logit_softcapping == 30


def test_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="only gemma2 is known here"):
        ctranslate2_windows.main([str(LLAMA), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="exists already"):
        ctranslate2_windows.main([str(LLAMA), str(tmp_path)])


def test_the_engine_keeps_windows_where_layers_were_dropped(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    windowed_models.main([str(tmp_path)])
    model, out = tmp_path / "gemma2-without-0", tmp_path / "out"
    # a tokenizer without one of the three tokens can be converted and loaded too
    file = model / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    del fields["unk_token"], fields["bos_token"]
    file.write_text(json.dumps(fields))
    ctranslate2_windows.main([str(model), str(out)])
    stepwise = engines.compared(model, out, engines.ENGINES["ctranslate2_stepwise"])
    at_once = engines.compared(model, out, engines.ENGINES["ctranslate2"])
    assert stepwise["equal"] == stepwise["compared"] > 0
    assert at_once["equal"] < at_once["compared"]
