"""A node that does not see the run's folder is named before anything is written."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ptl_fast.base import distributed
from ptl_fast.run import shared_folder


class Ranks:
    """Two ranks as threads, of which the second sees another disk at the same path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_shared: bool) -> None:
        self.local, self.meeting = threading.local(), threading.Barrier(2)
        self.values: dict[int, Any] = {}
        monkeypatch.setattr(shared_folder, "PATIENCE", 0.1)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "is_main", lambda: self.local.rank == 0)
        monkeypatch.setattr(distributed, "barrier", self.meeting.wait)
        monkeypatch.setattr(distributed, "gathered", self.gathered)
        monkeypatch.setattr(distributed, "agree", lambda value: self.gathered(value)[0])
        appears = shared_folder._appears
        monkeypatch.setattr(
            shared_folder,
            "_appears",
            lambda file: appears(file) and (is_shared or self.local.rank == 0),
        )

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.local.rank] = value
        self.meeting.wait()
        everything = [self.values[0], self.values[1]]
        self.meeting.wait()
        return everything

    def check(self, output: Path) -> list[str]:
        """What each rank raised."""
        raised = ["", ""]

        def run(rank: int) -> None:
            self.local.rank = rank
            try:
                shared_folder.check(output)
            except ValueError as error:
                raised[rank] = str(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return raised


@pytest.mark.parametrize("is_shared", [True, False])
def test_all_ranks_see_it_or_all_say_who_does_not(
    is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Ranks(monkeypatch, is_shared).check(tmp_path / "runs" / "mine")
    if is_shared:
        assert said == ["", ""]
    else:
        assert all("does not appear to rank 1 on " in each for each in said)
        assert all(f"--output {tmp_path}" in each for each in said)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_one_process_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_folder.check(Path("/nowhere/at/all"))
