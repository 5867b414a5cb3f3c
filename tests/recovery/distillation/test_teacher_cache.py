"""The teacher's predictions on disk: what they say, how large they are, and what a crash leaves."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ptl_fast.recovery.distillation import teacher_cache
from support.distillation import cached, fill
from support.recovery import Killed


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences a part."""
    monkeypatch.setattr(teacher_cache, "PART_BYTES", 5 * teacher_cache.row_bytes(32, 16, 384))


def test_predictions_are_read_by_row_as_the_teacher_made_them(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    """Alone in its batch; half precision is all that is lost. Nothing is kept of the sequences that
    were not asked for.
    """
    cache, tokens = cached(tmp_path)
    fill(cache, tokens, lambda: llama)
    assert cache.num_parts > 2
    with pytest.raises(KeyError):
        cache.read(0)
    for row in cache.rows:
        one = tokens.rows(torch.tensor([row]))
        logits = llama(
            input_ids=one.input_ids, position_ids=one.position_ids, use_cache=False
        ).logits[0]
        read = cache.read(row)
        expected = (logits.double() / 2.0).log_softmax(-1)
        chosen = read["tokens"].long()
        torch.testing.assert_close(
            read["log_top"].double(), expected.gather(-1, chosen), atol=2e-3, rtol=2e-3
        )
        others = expected.exp().scatter(-1, chosen, 0.0).sum(-1).log()
        torch.testing.assert_close(read["log_rest"].double(), others, atol=1e-5, rtol=1e-5)
        assert (read["log_top"][:, -1:] >= expected.scatter(-1, chosen, -torch.inf) - 1e-2).all(), (
            "the likeliest are kept"
        )


def test_size_on_disk_is_the_predicted_one(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    """But for a header of each file; and a vocabulary above 65536 takes two more bytes a token that
    is kept.
    """
    cache, tokens = cached(tmp_path)
    fill(cache, tokens, lambda: llama)
    sizes = [file.stat().st_size for file in (tmp_path / "teacher").iterdir()]
    predicted = len(cache.rows) * teacher_cache.row_bytes(32, 16, 384)
    assert predicted == len(cache.rows) * (32 * (16 * 4 + 4) + 8)
    assert predicted < sum(sizes) < predicted + 400 * len(sizes)
    assert teacher_cache.row_bytes(32, 16, 128256) == 32 * (16 * 6 + 4) + 8
    assert teacher_cache.row_bytes(32, 1000, 384) == 32 * (384 * 4 + 4) + 8, (
        "no more than there are"
    )


def test_killed_pass_goes_on_and_ends_bit_identical(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that were there are not computed again; when all are there, the teacher is not even
    loaded.
    """
    undisturbed, tokens = cached(tmp_path / "a")
    fill(undisturbed, tokens, lambda: llama)
    cache, _ = cached(tmp_path / "b")
    write = teacher_cache.write_atomically

    def die_at_the_third(file: Path, content: bytes) -> None:
        if file.name == "part-00002.safetensors":
            file.with_name(file.name + ".tmp").write_bytes(content[:100])
            raise Killed
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "write_atomically", die_at_the_third)
        with pytest.raises(Killed):
            fill(cache, tokens, lambda: llama)
    assert cache.missing() == list(range(2, cache.num_parts))
    before = (tmp_path / "b" / "teacher" / "part-00000.safetensors").stat().st_mtime_ns
    fill(cache, tokens, lambda: llama)
    assert (tmp_path / "b" / "teacher" / "part-00000.safetensors").stat().st_mtime_ns == before
    files = {
        folder: {file.name: file.read_bytes() for file in (tmp_path / folder / "teacher").iterdir()}
        for folder in "ab"
    }
    assert files["a"] == files["b"]
    fill(cache, tokens, lambda: pytest.fail("the teacher was loaded"))


def test_part_that_was_cut_off_is_computed_again_and_a_damaged_one_is_named(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    cache, tokens = cached(tmp_path)
    fill(cache, tokens, lambda: llama)
    part = tmp_path / "teacher" / "part-00001.safetensors"
    whole = part.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        again, _ = cached(tmp_path)
        assert again.missing() == [1]
        fill(again, tokens, lambda: llama)
        assert part.read_bytes() == whole
    middle = len(whole) // 2
    part.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    again, _ = cached(tmp_path)
    with pytest.raises(ValueError, match=r"part-00001.safetensors is damaged; delete it"):
        list(map(again.read, again.rows))


def test_full_disk_and_broken_teacher_are_named(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, tokens = cached(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            teacher_cache.shutil,
            "disk_usage",
            lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100),
        )  # type: ignore[attr-defined]
        with pytest.raises(
            ValueError, match=r"predictions for .* sequences need 0.0 GiB .* lower --distill-top-k"
        ):
            fill(cache, tokens, lambda: pytest.fail("the teacher was loaded"))
    with torch.no_grad():
        llama.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="the teacher computes NaN or infinite logits"):
        fill(cache, tokens, lambda: llama)
    assert not (tmp_path / "teacher").exists()
