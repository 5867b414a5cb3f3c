"""Messages: once for all ranks, errors in one line, libraries quiet."""

import logging

import pytest
import transformers

from ptl_fast.base import console, distributed
from ptl_fast.base.console import first_line, quiet_libraries, say


def test_only_the_main_rank_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        say(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\n\ntwo"), "one"),
        (MemoryError(), "MemoryError"),
        (ValueError("  "), "ValueError"),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_sentences_break_between_words_and_tables_do_not() -> None:
    text = "One sentence of several words: longer-than-a-line.\n| a table | is left |\n    code too"
    broken = (
        "One sentence of\nseveral words:\nlonger-than-a-line.\n| a table | is left |\n    code too"
    )
    assert console.wrapped(text, 16) == broken
    assert console.wrapped(text, None) == text
    assert console.wrapped("fits\n\nas it   is", 10) == "fits\n\nas it   is"


def test_quiet_libraries_say_nothing_below_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    verbosity = transformers.logging.get_verbosity()
    try:
        quiet_libraries()
        logging.getLogger("elsewhere").warning("quiet")
        transformers.logging.get_logger("transformers.elsewhere").warning("quiet")
        logging.getLogger("elsewhere").error("loud")
        assert "quiet" not in capfd.readouterr().err
        assert not logging.getLogger("elsewhere").isEnabledFor(logging.WARNING)
        assert logging.getLogger("elsewhere").isEnabledFor(logging.ERROR)
    finally:
        logging.disable(logging.NOTSET)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def test_libraries_say_as_much_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(logging, "basicConfig", lambda level: None)  # pytest has its own handlers
    verbosity = transformers.logging.get_verbosity()
    try:
        quiet_libraries("info")
        for name in ("transformers.elsewhere", "datasets.elsewhere"):
            assert logging.getLogger(name).isEnabledFor(logging.INFO)
            assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger("datasets").setLevel(logging.NOTSET)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def test_quiet_holds_inside_alone(capsys: pytest.CaptureFixture[str]) -> None:
    import logging
    import warnings

    def noise() -> None:
        logging.getLogger("library").warning("logged")
        warnings.warn("warned", stacklevel=1)
        print("said")

    with console.quieted(everything=True):
        noise()
    assert capsys.readouterr() == ("", "")
    with console.quieted():
        noise()
    assert capsys.readouterr() == ("said\n", "")
    with pytest.warns(UserWarning, match="warned"):
        noise()
    assert logging.root.manager.disable == 0
