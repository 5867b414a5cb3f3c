"""A cell's file keeps every answer, a line each."""

from pathlib import Path

from benchmarks.methods import reasoning_results as results
from ptl_fast.evaluation.chat import Judged
from support.reasoning import fake_result

RIGHT = Judged(right=True, tokens=12, finished=True, repeating=False)
CUT = Judged(right=False, tokens=99, finished=False, repeating=True)


def test_answers_come_back_in_any_order_of_batches(tmp_path: Path) -> None:
    result = {**fake_result("a", "0011"), "answers": {}, "batches": {}}
    results.add_answers(result, "mbpp", [(1, RIGHT)], {"wall": 3.0, "cpu": 1.0})
    results.add_answers(result, "gsm8k", [(2, CUT), (0, RIGHT)], {"wall": 3.0, "cpu": 1.5})
    results.add_answers(result, "gsm8k", [(1, CUT)], {"wall": 1.0, "cpu": 0.5})
    file = tmp_path / "a.json"
    results.write(file, result)
    assert results.read(file) == result
    assert results.answers(result, "gsm8k") == {2: CUT, 0: RIGHT, 1: CUT}
    assert results.right(result, ["gsm8k", "mbpp"]) == [1, 0, 0, 1]
    assert results.right(result, ["mbpp"]) == [1]
    assert "[2, 0, 99, 0, 1]" in file.read_text()
    assert results.seconds_per_answer(result) == 3.0 / 4
    result["environment"]["device_type"] = "cuda"
    assert results.seconds_per_answer(result) == 7.0 / 4


def test_other_files_of_the_folder_are_no_cells(tmp_path: Path) -> None:
    results.write(tmp_path / "a.json", fake_result("a", "0011"))
    results.write(tmp_path / "b.json", {**fake_result("b", "0011"), "finished": False})
    (tmp_path / "speed.json").write_text('{"rows": []}')
    found = results.read_all(tmp_path)
    assert found.keys() == {"a", "b"}
    assert results.finished(found).keys() == {"a"}
    assert results.read(tmp_path / "c.json") is None
