"""Uploading to the hub, against a fake: what is sent, where, and what is told when it fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.run import push
from support.runs import RUN


class Address(str):
    """What create_repo returns: an address that knows its repository."""

    repo_id = "somebody/small"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every call of the hub's API, which does nothing."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(name: str, **options: Any) -> Address:
        calls.append(("create", {"name": name, **options}))
        return Address("https://huggingface.co/somebody/small")

    def upload_folder(**options: Any) -> None:
        calls.append(("upload", options))

    fake = SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return calls


def test_a_folder_goes_into_a_private_repository(hub: list, tmp_path: Path) -> None:
    assert push.upload(tmp_path, "small") == "https://huggingface.co/somebody/small"
    (_, created), (_, uploaded) = hub
    assert created == {"name": "small", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "somebody/small"
    assert uploaded["folder_path"] == tmp_path
    assert "checksums.list" in uploaded["ignore_patterns"]


def test_a_failure_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_repo(*_: Any, **__: Any) -> None:
        raise OSError("Token is required\nbut no token was found")

    fake = SimpleNamespace(create_repo=create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    with pytest.raises(ValueError, match="no token was found") as failure:
        push.upload(tmp_path, "small")
    assert "\n" not in str(failure.value)
    assert f"The result is whole in {tmp_path}" in str(failure.value)
    assert "hf auth login" in str(failure.value)


def test_a_run_uploads_only_when_asked_and_may_be_asked_later(
    hub: list, tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "output": tmp_path / "run"}
    compress(**settings)
    assert not hub
    compress(**settings, push_to_hub="somebody/small")
    assert [call for call, _ in hub] == ["create", "upload"]
    assert hub[1][1]["folder_path"] == tmp_path / "run" / "final"
    assert "Uploaded to https://huggingface.co/somebody/small" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "a/b/c", "two words", "a--b", "x.git", "/x", "x" * 97])
def test_a_name_that_the_hub_refuses_is_refused_before_the_run(
    name: str, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is no repository's name"):
        compress(**tiny_run, **RUN, output=tmp_path / "run", push_to_hub=name)
    assert not (tmp_path / "run").exists()
