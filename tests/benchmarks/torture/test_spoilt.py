"""Every spoilt file differs from the one before, and the same seed spoils the same."""

import json
import random
from pathlib import Path

from benchmarks.torture import spoilt
from ptl_fast.config.config import Config
from support.files import write_data
from support.settings import settings


def test_a_flipped_and_a_cut_file_differ(tmp_path: Path) -> None:
    for kind, length in (("flip", 10), ("cut", 5)):
        (tmp_path / "file").write_bytes(b"0123456789")
        spoilt.spoil_bytes(tmp_path / "file", kind, random.Random(1))
        content = (tmp_path / "file").read_bytes()
        assert content != b"0123456789"
        assert len(content) == length


def test_one_value_is_changed() -> None:
    for seed in range(50):
        content = {"a": 5, "b": {"c": [7, 8]}}
        spoilt.spoil_value(content, random.Random(seed))
        assert json.dumps(content) != json.dumps({"a": 5, "b": {"c": [7, 8]}})


def test_the_same_seed_spoils_the_same(tmp_path: Path) -> None:
    for seed in range(10):
        texts = []
        for _ in range(2):
            file = write_data(tmp_path / "data.jsonl", 20)
            spoilt.spoil_rows(file, random.Random(seed))
            texts.append(file.read_bytes())
        assert texts[0] == texts[1]


def test_flags_are_settings_and_yaml_names_them() -> None:
    assert isinstance(settings(), Config)
    for seed in range(20):
        name, value = spoilt.odd_flag(random.Random(seed))
        assert name.replace("-", "_") in spoilt.as_yaml(name, value, random.Random(seed))
