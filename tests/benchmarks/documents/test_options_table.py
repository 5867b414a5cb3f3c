"""docs/options.md has every setting, as --help tells it."""

from pathlib import Path

import pytest

from benchmarks.documents import options_table
from ptl_fast.config.config import FIELDS


def test_the_document_is_what_the_settings_give(tmp_path: Path) -> None:
    options_table.main(["--check"])
    changed = tmp_path / "options.md"
    changed.write_text(options_table.DOCUMENT.read_text().replace("`--keep`", "`--kept`"))
    with pytest.raises(SystemExit, match="is not what the results give"):
        options_table.main(["--check", "--document", str(changed)])


def test_every_setting_has_a_row_with_its_default_and_choices() -> None:
    text = options_table.DOCUMENT.read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "| `--" in line}
    assert rows.keys() == {f"`--{name.replace('_', '-')}`" for name in FIELDS}
    assert all(len(line.split("|")[3].strip()) > 10 for line in rows.values())
    assert "| `tensorboard` |" in rows["`--report-to`"]
    assert "Choices: `error`, `warning`, `info`, `debug`." in rows["`--log-level`"]
    assert "| `true` |" in rows["`--compensate`"]
