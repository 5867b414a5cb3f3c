"""Only whole checkpoints are used."""

from pathlib import Path

from ptl_fast.base.atomic_files import WHOLE
from ptl_fast.recovery import checkpoints


def test_half_written_checkpoint_is_not_used(tmp_path: Path) -> None:
    for step in (3, 12, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints.newest_checkpoint(tmp_path) is None
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"moments")
        (tmp_path / f"checkpoint-{step}" / WHOLE).write_text('{"optimizer.pt": 7}')
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(b"mom")  # as after a power failure
    assert checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
