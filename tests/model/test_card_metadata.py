"""Licence and language of an original are carried on, and nothing that is only its own."""

from pathlib import Path

import pytest

from ptl_fast.model import card_metadata

CARD = """---
license: llama3.2
license_link: LICENSE.txt
language: [en, de]
pipeline_tag: text-generation
tags: [facebook, llama]
base_model: meta-llama/Llama-3.2-1B
model-index: [{name: x}]
---
# A model
"""


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_what_holds_for_a_smaller_model_is_carried_on(start: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(start + CARD)
    (tmp_path / "LICENSE").write_text("MIT License")
    assert card_metadata.read(str(tmp_path)) == {
        "license": "llama3.2",
        "license_link": "LICENSE.txt",
        "language": ["en", "de"],
        "pipeline_tag": "text-generation",
    }


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("\n      Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nCopyright", "mit"),
    ],
)
def test_a_licence_is_known_by_its_text(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text(text)
    assert card_metadata.read(str(tmp_path)) == {"license": licence}


def test_a_licence_that_is_not_known_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    (tmp_path / "LICENCE.md").write_text("Do what you like.")
    assert card_metadata.read(str(tmp_path)) == {
        "license": "other",
        "license_name": "see-file",
        "license_link": "LICENCE.md",
    }


def test_a_folder_without_card_and_licence_carries_nothing(tmp_path: Path) -> None:
    assert card_metadata.read(str(tmp_path)) == {}


def test_only_a_model_of_the_hub_has_a_name_there(tmp_path: Path) -> None:
    assert card_metadata.hub_name(str(tmp_path)) is None
    assert card_metadata.hub_name("ptl-demo") is None
    assert card_metadata.hub_name("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
