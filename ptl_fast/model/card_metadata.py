"""What the original's model card says of it, and a compressed model's card carries on: licence,
languages, task. Read from the YAML at the top of its README.md, or else from its licence file.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers.utils import cached_file

from ptl_fast.model import companions, loading

if TYPE_CHECKING:
    from ptl_fast.config.model import ModelSettings

# What holds for a smaller model too; its own tags, data sets and results are others.
CARRIED = (
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "extra_gated_heading",
    "extra_gated_prompt",
    "extra_gated_button_content",
)
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
# The hub's name of a licence by the words at the beginning of its text.
LICENCE_TEXTS = {
    r"Apache License\s+Version 2\.0": "apache-2.0",
    r"MIT License|Permission is hereby granted, free of charge": "mit",
    r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3": "agpl-3.0",
    r"GNU GENERAL PUBLIC LICENSE\s+Version 3": "gpl-3.0",
}
MOST_BYTES = 2**20  # of a card or a licence that is read


def hub_name(name: str) -> str | None:
    """The name of the original on the hub; None for a folder, which does not say whence it is."""
    return name if loading.local_folder(name) is None else None


def read(name: str, settings: "ModelSettings | None" = None) -> dict[str, Any]:
    """The fields of the original's card that a compressed model's card carries on.

    Args:
        name: of the model: a folder, a name on the hub, or ``ptl-demo``.
        settings: its revision on the hub.

    Returns:
        {field: value}; empty where it has neither a card nor a licence that can be read.
    """
    fields = {
        field: value for field, value in _front_matter(_card(name, settings)).items() if value
    }
    carried = {field: fields[field] for field in CARRIED if field in fields}
    folder = companions.source_folder(name, settings)
    if "license" not in carried and folder is not None:
        carried |= _licence_of(folder)
    return carried


def _card(name: str, settings: "ModelSettings | None") -> str:
    """The text of the original's README.md; empty without one."""
    folder = loading.local_folder(name)
    file: Any = folder / "README.md" if folder is not None else None
    if folder is None:
        file = cached_file(
            name,
            "README.md",
            revision=settings.revision if settings is not None else None,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    return _text(Path(file)) if file is not None else ""


def _front_matter(card: str) -> dict[str, Any]:
    """The YAML at the top of a card; empty where there is none, or none that can be read."""
    found = FRONT_MATTER.match(card)
    if found is None:
        return {}
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _licence_of(folder: Path) -> dict[str, Any]:
    """The licence by its text in a folder; by its file's name where the text is not known."""
    names = [
        file.name
        for file in sorted(folder.iterdir())
        if file.is_file() and re.match(r"licen[sc]e", file.name, re.IGNORECASE)
    ]
    if not names:
        return {}
    beginning = _text(folder / names[0])[:2000]
    for words, licence in LICENCE_TEXTS.items():
        if re.search(words, beginning):
            return {"license": licence}
    return {"license": "other", "license_name": "see-file", "license_link": names[0]}


def _text(file: Path) -> str:
    """A file's text, without what is beyond MOST_BYTES; empty without the file."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        # a card that begins with a byte order mark is still a card
        return stream.read(MOST_BYTES).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
