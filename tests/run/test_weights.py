"""Weights are loaded from the round's folder, and ids beyond the embedding are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ptl_fast.run import weights
from ptl_fast.run.context import LoadedModel, RunContext


def test_ids_without_an_embedding_are_named_with_the_model() -> None:
    ids = torch.tensor([[3, 9], [4, 1]])
    context: Any = SimpleNamespace(data=SimpleNamespace(training=[SimpleNamespace(input_ids=ids)]))
    weights.check_embeddings(context, "it", 10)
    with pytest.raises(ValueError, match=r"--model it: .* beyond the model's 9 embeddings"):
        weights.check_embeddings(context, "it", 9)


@pytest.mark.parametrize(
    ("number", "extension", "folder"), [(0, 0, None), (2, 0, "2-0"), (2, 1, "2-1")]
)
def test_a_round_is_loaded_from_its_own_folder(
    number: int, extension: int, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_round(number: int) -> Any:
        return SimpleNamespace(
            model=lambda extension: SimpleNamespace(path=Path(f"{number}-{extension}"))
        )

    loaded: list[Path | None] = []
    monkeypatch.setattr(weights, "load_folder", lambda context, path: loaded.append(path))
    context: Any = SimpleNamespace(folder=SimpleNamespace(round=of_round))
    weights.load_weights(context, number, extension)
    assert loaded == [None if folder is None else Path(folder)]


def test_weights_that_are_loaded_later_are_loaded_when_something_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields: Any = dict.fromkeys(
        [
            "config",
            "device",
            "original",
            "saved_dtype",
            "folder",
            "rounds",
            "data",
            "inputs",
            "tasks",
        ]
    )
    context, loaded = RunContext(**fields), list[int]()

    def load(context: RunContext, number: int) -> None:
        loaded.append(number)
        context.loaded = LoadedModel(model="it", family=None)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "load_weights", load)
    context.loaded = LoadedModel(model="another", family=None)  # type: ignore[arg-type]
    weights.load_later(context, 3)
    assert not loaded
    assert context.loaded is None
    assert [context.model, context.model] == ["it", "it"]
    assert loaded == [3]
