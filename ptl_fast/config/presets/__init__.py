"""Recipes by name: each .yaml file here holds settings; configs/ holds the models' architectures, which a dry run reads."""

import json
import types
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parent
DEMO_CONFIG = PRESETS.parents[1] / "demo" / "model" / "config.json"


def preset_settings(name: str | None, model: str | None) -> dict[str, Any]:
    """Settings of a preset; without a preset and a model, of the demo.

    Raises:
        ValueError: no such preset.
    """
    if name is None:
        if model is not None:
            return {}
        name = "demo"
    import yaml

    file = PRESETS / f"{name}.yaml"
    if not file.is_file():
        choices = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        raise ValueError(f"unknown --preset {name}; choose {', '.join(choices)}")
    return {"preset": name, **yaml.safe_load(file.read_text())}


def shipped_config(name: str) -> types.SimpleNamespace | None:
    """The architecture's numbers of a model that a preset names: enough for a dry run, not for loading weights."""
    file = PRESETS / "configs" / f"{name.replace('/', '--')}.json"
    if name == "ptl-demo":
        file = DEMO_CONFIG
    if Path(name).exists() or not file.is_file():
        return None
    return types.SimpleNamespace(**json.loads(file.read_text()))
