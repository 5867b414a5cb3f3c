"""The table of docs/peers.md on finer searches is what the rows give."""

from benchmarks.documents import peers_table


def test_others_are_written_against_the_chunks_error() -> None:
    row = {"layer": 2, "chunks": 0.02, "one by one": 0.019, "swapped": 0.021}
    result = {
        "file": "local_search_x.json",
        "model": "m",
        "ridge": 0.03,
        "keep": 0.5,
        "rows": [row],
    }
    header, line = peers_table.search_table([result])
    assert line[:7] == ["m", "50%", "2", "0.03", "2.000%", "-5.0%", "+5.0%"]
    assert len(header) == len(line)


def test_committed_document_is_what_the_rows_give() -> None:
    assert "<!-- table:local_search -->" in peers_table.DOCUMENT.read_text()
    peers_table.main(["--check"])
