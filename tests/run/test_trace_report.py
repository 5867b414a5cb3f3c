"""What a run says about its own traces."""

from transformers import PreTrainedTokenizerBase

from ptl_fast.data.generation import Sampling
from ptl_fast.data.traces import Form, Tracer
from ptl_fast.run.trace_report import beginning, section, sentence

ORIGINAL = {
    "round": 1,
    "asked": 128,
    "finished": 120,
    "judged": 110,
    "right": 90,
    "kept": 100,
    "mean_tokens": 28.2,
    "seconds": 36.9,
}
RENEWED = {**ORIGINAL, "round": 3, "asked": 60, "kept": 40}


def test_it_says_how_many_turned_out_how() -> None:
    assert sentence(ORIGINAL) == (
        "Own traces: 128 asked, 120 ended by itself, 90 of 110 judged right, 100 kept; 28 tokens"
        " each, in 37 s."
    )
    assert "judged" not in sentence({**ORIGINAL, "judged": 0, "right": 0})
    assert sentence(RENEWED, 3).startswith("Round 3: own traces renewed: 60 asked")


def test_the_report_has_a_row_for_each_model() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section([ORIGINAL, RENEWED]).splitlines()
    ]
    assert lines[2] == ["original", "128", "120", "110", "90", "100", "28", "37"]
    assert lines[3] == ["before round 3", "60", "120", "110", "90", "40", "28", "37"]


def test_it_says_what_is_about_to_be_made(tokenizer: PreTrainedTokenizerBase) -> None:
    def line(sampling: Sampling, num_tokens: float | None) -> str:
        tracer = Tracer(
            model=None,  # type: ignore[arg-type]
            form=Form(tokenizer=tokenizer),
            sampling=sampling,
            batch_size=2,
            judge=lambda *_: None,
        )
        return beginning(tracer, num_tokens)

    assert line(Sampling(max_new_tokens=80), 6000.4) == (
        "Own traces: the model answers the data's questions in --template's form, until 6,000"
        " tokens are kept; the likeliest token each time, at most 80 tokens each."
    )
    assert "all of them; temperature 0.6" in line(Sampling(max_new_tokens=8, temperature=0.6), None)
