"""A model is named by text or a path object; whether there is one shows when it is loaded."""

from pathlib import Path

from ptl_fast.config.model import ModelSettings


def test_a_path_object_names_a_model(tmp_path: Path) -> None:
    settings = ModelSettings(model=tmp_path / "nowhere")
    settings.check()
    assert settings.model == f"{tmp_path}/nowhere"
