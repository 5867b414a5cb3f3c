"""The machine and the commit that a result belongs to."""

import pytest
import torch

from benchmarks.harness import environment as environment_module


def test_environment_says_what_was_measured_on() -> None:
    known = environment_module.environment("cpu")
    assert (known["device_type"], known["clock"], known["driver"]) == ("cpu", "wall", None)
    assert known["device"] == environment_module.processor_name()
    assert known["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("answers", "commit", "dirty", "short"),
    [
        (("0123456789ab", " M x.py"), "0123456789ab", True, "012345678+"),
        (("0123456789ab", ""), "0123456789ab", False, "012345678"),
        ((None, None), "told", None, "told"),
    ],
    ids=["changed", "clean", "copy without .git"],
)
def test_commit_is_read_or_told(
    answers: tuple[str | None, str | None],
    commit: str,
    dirty: bool | None,
    short: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_command = dict(zip(("rev-parse", "status"), answers, strict=True))
    monkeypatch.setattr(environment_module, "_git", lambda command, *_: by_command[command])
    monkeypatch.setenv("COMMIT", "told")
    assert environment_module.checked_out() == (commit, dirty)
    assert environment_module.short_commit() == short


def test_names_of_dtypes() -> None:
    assert environment_module.dtype_name(torch.bfloat16) == "bfloat16"
