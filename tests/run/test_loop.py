"""A run that dies at any place goes on with the same command, and ends bit-identical."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptl_fast import compress
from ptl_fast.base import run_files, stored
from ptl_fast.recovery import (
    trainer,
)
from ptl_fast.run import folder as folder_module
from support.gate import DECIDED, SCRIPT, actions
from support.runs import LATER, RUN, Killed, plans


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have the next run die before it writes a file, or before a round's step begins: 'round-01
    step 7'.
    """
    write, begin = stored.write_atomically, trainer.StopAtNan.on_step_begin
    where = [""]

    def dying_write(file: Path, content: bytes) -> None:
        if where[0] and file.as_posix().endswith(where[0]):
            raise Killed
        write(file, content)

    def dying_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if where[0] == f"{Path(args.output_dir).parent.name} step {state.global_step}":
            raise Killed
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(stored, "write_atomically", dying_write)
    monkeypatch.setattr(trainer.StopAtNan, "on_step_begin", dying_step)

    def choose(place: str) -> None:
        where[0] = place

    return choose


EVERYTHING = {**LATER, "keep_optimizer_state": True, "anticipate": 1e-3}


ONE_SCHEDULE = {**LATER, "lr_schedule": "run", "score_once": True, "anticipate": 1e-3}


@pytest.mark.parametrize(
    ("options", "places"),
    [
        pytest.param(
            EVERYTHING,
            "round-01 step 3,round-02/plan.json,round-01/optimizer.safetensors,"
            "round-01/record.json,round-02/pruned.json,round-02 step 8,round-02/recovery.json,"
            "round-03 step 2",
            id="until-recovered-state-anticipate",
        ),
        pytest.param(ONE_SCHEDULE, "round-01 step 8,round-02 step 4", id="run-schedule-score-once"),
    ],
)
def test_killed_run_ends_bit_identical(
    options: dict,
    places: str,
    tiny_run: dict[str, str],
    kill: Callable[[str], None],
    tmp_path: Path,
) -> None:
    undisturbed = compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "a")
    for place in places.split(","):
        kill(place)
        with pytest.raises(Killed):
            compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "b")
        gc.collect()  # lets go of the folder, as a process that ends does
    kill("")
    report = compress(**tiny_run, **{**RUN, **options}, output=tmp_path / "b")
    assert (tmp_path / "a/final/model.safetensors").read_bytes() == (
        tmp_path / "b/final/model.safetensors"
    ).read_bytes()
    assert plans(tmp_path / "a") == plans(tmp_path / "b")
    for record in (*undisturbed["rounds"], *report["rounds"]):
        del record["seconds"]
    assert undisturbed["rounds"] == report["rounds"]
    assert not list((tmp_path / "b").rglob("optimizer.safetensors")), "no round needs it any more"


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a run die before each decision, evaluation, saved model, record, rename and deletion,
    each once; these places.
    """
    places: list[str] = []
    watched = (
        "decisions.json",
        "record.json",
        "recovered.json",
        "recovered-extra-1.json",
        "model",
        "model-extra-1",
    )

    def die_once(place: str) -> None:
        if place not in places:
            places.append(place)
            raise Killed

    def dying(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            path = next(each for each in reversed(args) if isinstance(each, Path))
            if kind != "write" or path.name in watched:
                content = args[1].count(b"action") if path.name == "decisions.json" else ""
                die_once(f"{kind} {path.parent.name}/{path.name} {content}")
            return function(*args)

        return call

    monkeypatch.setattr(stored, "write_atomically", dying(stored.write_atomically, "write"))
    monkeypatch.setattr(stored, "publish", dying(stored.publish, "save"))
    for module in (folder_module, run_files):
        monkeypatch.setattr(module, "rename", dying(module.rename, "rename"))
    return places


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    records = [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in report["rounds"]
    ]
    return {
        **{name: report[name] for name in ("dense", "decisions", "stopped", "final")},
        "rounds": records,
    }


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob(pattern))
    }


STATE = {
    "recovery_split": "until-recovered",
    "recovered_within": -1.2,
    "keep_optimizer_state": True,
    "anticipate": 1e-3,
}


DURING = {"scorer": "output-change", "score_during_recovery": True, "lr_schedule": "run"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(STATE, id="until-recovered-state-anticipate"),
        pytest.param(DURING, id="score-during-recovery-run-schedule"),
    ],
)
def test_run_killed_at_every_decision_ends_bit_identical(
    options: dict,
    gated: dict[str, Any],
    follow: Callable[[str, Path], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    follow(SCRIPT, tmp_path / "a")
    undisturbed = compress(**{**gated, **options}, output=tmp_path / "a")
    assert actions(undisturbed) == DECIDED
    follow(SCRIPT, tmp_path / "b")
    places, report = request.getfixturevalue("mortal"), None
    while report is None:
        try:
            report = compress(**{**gated, **options}, output=tmp_path / "b")
        except Killed:
            gc.collect()  # lets go of the folder, as a process that ends does
    decisions = [place for place in places if place.startswith("write b/decisions.json")]
    assert len(decisions) == len(SCRIPT)
    assert {
        "rename b/round-01.failed-1 ",
        "write round-05.failed-1/record.json ",
        "rename round-02/model ",
    } <= set(places)
    assert comparable(report) == comparable(undisturbed)
    for pattern in (
        "final/*.json",
        "final/*.safetensors",
        "round-*/plan.json",
        "round-*/statistics.safetensors",
        "decisions.json",
    ):
        assert files(tmp_path / "a", pattern) == files(tmp_path / "b", pattern), pattern
    folders = [
        sorted(str(path.relative_to(tmp_path / run)) for path in (tmp_path / run).glob("round-*/*"))
        for run in "ab"
    ]
    assert folders[0] == folders[1]
    assert not list((tmp_path / "b").rglob("*.tmp"))


def test_a_run_says_before_it_begins_that_it_refits_to_few_tokens(
    tiny_run: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**RUN, "recovery": "none", "rounds": 1}
    for scorer, compensate, says in (("reconstruction", True, True), ("activation", False, False)):
        options = {"calibration_tokens": 128, "scorer": scorer, "compensate": compensate}
        compress(**{**tiny_run, **settings, **options}, output=tmp_path / scorer)
        said = capsys.readouterr().out
        assert ("Calibration is going to have few tokens: 128 in round 1" in said) == says


def test_a_finished_run_is_repeated_without_its_weights(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {**tiny_run, **RUN, "rounds": 1}
    first = compress(**settings, output=tmp_path)
    assert compress(**settings, output=tmp_path) == first
