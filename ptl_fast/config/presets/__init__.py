"""Presets (recipes by name): each NAME.yaml here holds the settings of one.

configs/ holds the config.json of the models that presets name, for dry runs without a download.
"""

import json
import types
from pathlib import Path
from typing import Any

from ptl_fast.config.checking import unknown

PRESETS = Path(__file__).parent
DEMO_CONFIG = PRESETS.parents[1] / "demo" / "model" / "config.json"


def preset_settings(name: str | None) -> dict[str, Any]:
    """Return {setting: value} of a preset, with its name; empty for None.

    Raises:
        ValueError: there is no such preset; lists the choices.
    """
    if name is None:
        return {}
    # only where a file is read: most uses have no preset
    import yaml

    file = PRESETS / f"{name}.yaml"
    if not file.is_file():
        choices = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        raise ValueError(unknown("--preset", name, choices))
    return {"preset": name, **yaml.safe_load(file.read_text())}


def shipped_config(name: str) -> types.SimpleNamespace | None:
    """Return the config of a model that a preset names, as plain attributes; None for other models.

    Its sizes are enough for a dry run. It is no transformers config, and loads no weights.
    """
    file = PRESETS / "configs" / f"{name.replace('/', '--')}.json"
    if name == "ptl-demo":
        file = DEMO_CONFIG
    # a local folder of that name is the user's own model, with its own config
    if Path(name).exists() or not file.is_file():
        return None
    return types.SimpleNamespace(**json.loads(file.read_text()))
