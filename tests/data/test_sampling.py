"""Corpora are split among the rounds without overlap, by their shares, in bounded memory."""

import itertools
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from ptl_fast.data import chats, readers, sampling
from ptl_fast.data import documents as documents_module
from ptl_fast.data.documents import EXCHANGE, Chat, Document
from ptl_fast.data.readers import Part
from ptl_fast.demo.problems import generate
from support import chat_templates
from support.chat_templates import with_template
from support.files import write_rows


def whole(documents: Iterable[Document], name: str = "x") -> list[Part]:
    return [Part(name, 1.0, documents)]


def split(
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int | None,
    seed: int = 0,
    parts: list[Part] | None = None,
) -> sampling.Corpus:
    documents = [Document(**problem) for problem in generate(2000, 6, "training")]
    return sampling.split_corpus(
        parts or whole(documents),
        tokenizer,
        shares=[0.1, 0.3, 0.6],
        num_tokens=num_tokens,
        num_held_out=50,
        seed=seed,
    )


@pytest.mark.parametrize("num_tokens", [None, 20_000])
def test_rounds_get_disjoint_subsets_of_the_asked_shares(
    tokenizer: PreTrainedTokenizerBase, num_tokens: int | None
) -> None:
    corpus = split(tokenizer, num_tokens)
    assert len(corpus.held_out) == 50
    held_out = {tuple(ids) for ids in sampling.tokenize(corpus.held_out, tokenizer)}
    subsets = [{tuple(ids) for ids in subset} for subset in corpus.subsets]
    for index, subset in enumerate(subsets):
        assert not subset & held_out
        assert all(not subset & other for other in subsets[:index])
    totals = [sum(map(len, subset)) for subset in corpus.subsets]
    assert [total / sum(totals) for total in totals] == pytest.approx([0.1, 0.3, 0.6], abs=0.01)
    if num_tokens is not None:
        assert num_tokens <= sum(totals) < num_tokens + 100


class Letters:
    """A tokenizer for properties: one token a character, none at the end."""

    eos_token_id = None

    def __init__(self) -> None:
        self.num_texts = 0

    def __call__(self, texts: list[str], verbose: bool) -> dict[str, list[list[int]]]:
        self.num_texts += len(texts)
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def texts(subset: Iterable[Iterable[int]]) -> list[str]:
    return ["".join(map(chr, ids)) for ids in subset]


def test_shares_that_add_up_to_a_whole_number_cut_there() -> None:
    """0.1 + 0.1 + 0.4 is a little more than 0.6 in floating point, and 50 tokens are cut after 30
    all the same.
    """
    documents = [sampling.Candidate(0, sampling.Document("", ""), [0] * 10) for _ in range(5)]
    assert [len(subset) for subset in sampling._cut(documents, [10] * 5, [0.1, 0.1, 0.4, 0.4])] == [
        1,
        0,
        2,
        2,
    ]


@settings(deadline=None, max_examples=150)
@given(
    corpora=st.lists(
        st.lists(st.text("abc", min_size=1, max_size=9), min_size=12, max_size=60, unique=True),
        min_size=1,
        max_size=3,
    ),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    round_weights=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    num_tokens=st.none() | st.integers(1, 400),
    num_held_out=st.integers(0, 6),
    seed=st.integers(0, 2**20),
)
def test_subsets_are_disjoint_and_their_shares_hold_within_a_document(
    corpora: list[list[str]],
    weights: list[int],
    round_weights: list[int],
    num_tokens: int | None,
    num_held_out: int,
    seed: int,
) -> None:
    shares = [weight / sum(round_weights) for weight in round_weights]
    part_weights = [weight / sum(weights[: len(corpora)]) for weight in weights[: len(corpora)]]

    numbered = [
        [Document("", f"{number}{text}") for text in documents]
        for number, documents in enumerate(corpora)
    ]

    def run(seed: int, reverse: bool = False) -> sampling.Corpus:
        parts = [
            Part(str(number), weight, documents[::-1] if reverse else documents)
            for number, (weight, documents) in enumerate(zip(part_weights, numbered, strict=True))
        ]
        settings = {
            "shares": shares,
            "num_tokens": num_tokens,
            "num_held_out": num_held_out,
            "seed": seed,
        }
        return sampling.split_corpus(parts, Letters(), keep_documents=not reverse, **settings)  # type: ignore[arg-type]

    try:
        corpus = run(seed)
    except ValueError as error:
        assert "too few" in str(error)  # noqa: PT017
        return
    subsets = [texts(subset) for subset in corpus.subsets]
    chosen = [text for subset in subsets for text in subset] + [
        document.text for document in corpus.held_out
    ]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {document.text for documents in numbered for document in documents}
    longest = 10
    by_part = [
        [sum(len(t) for t in subset if t[0] == str(number)) for subset in subsets]
        for number in range(len(corpora))
    ]
    total = sum(map(sum, by_part))
    if num_tokens is not None:
        assert total < num_tokens + longest * len(corpora)
    for weight, tokens in zip(part_weights, by_part, strict=True):
        assert abs(sum(tokens) - weight * total) <= longest * len(corpora)
        assert all(
            abs(got - share * sum(tokens)) < longest
            for got, share in zip(tokens, shares, strict=True)
        )
    again, reordered = run(seed), run(seed, reverse=True)
    assert (again.subsets, again.held_out, again.fingerprint) == (
        corpus.subsets,
        corpus.held_out,
        corpus.fingerprint,
    )
    assert (reordered.subsets, reordered.held_out) == (corpus.subsets, corpus.held_out), (
        "file order does not matter"
    )
    assert [[document.text for document in subset] for subset in corpus.documents] == subsets
    assert not any(reordered.documents), "text is kept only where it is asked for"
    assert reordered.fingerprint != corpus.fingerprint


def test_another_seed_gives_other_subsets(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = split(tokenizer, 9000), split(tokenizer, 9000, seed=1)
    assert first.subsets != second.subsets
    assert {tuple(ids) for ids in first.subsets[2]} != {tuple(ids) for ids in second.subsets[2]}
    assert first.fingerprint == second.fingerprint, "the seed is a setting, not data"


def test_every_part_of_a_subset_holds_the_weights() -> None:
    """Also its beginning, from which neurons are scored, and the held-out documents."""
    parts = [
        Part("a", 0.75, [Document("", f"a{number:03d}") for number in range(900)]),
        Part("b", 0.25, [Document("", f"b{number:07d}") for number in range(900)]),
    ]
    corpus = sampling.split_corpus(
        parts, Letters(), shares=[0.5, 0.5], num_tokens=2400, num_held_out=40, seed=3
    )  # type: ignore[arg-type]
    for subset in corpus.subsets:
        for first in (20, len(subset)):
            tokens = [
                sum(len(text) for text in texts(subset[:first]) if text[0] == name) for name in "ab"
            ]
            assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.07)
    assert [sum(document.answer[0] == name for document in corpus.held_out) for name in "ab"] == [
        30,
        10,
    ]
    assert {document.answer[0] for document in corpus.held_out[:6]} == {"a", "b"}


def test_the_source_that_ends_first_limits_the_others() -> None:
    parts = [
        Part("a", 0.5, [Document("", f"a{number:03d}") for number in range(900)]),
        Part("b", 0.5, [Document("", f"b{number:03d}") for number in range(100)]),
    ]
    corpus = sampling.split_corpus(
        parts, Letters(), shares=[0.25, 0.75], num_tokens=None, num_held_out=0, seed=3
    )  # type: ignore[arg-type]
    counts = [
        [sum(text[0] == name for text in texts(subset)) for name in "ab"]
        for subset in corpus.subsets
    ]
    assert counts == [[25, 25], [75, 75]]


def test_copies_are_trained_on_once() -> None:
    """Within a source and across sources, and where most documents are passed over."""
    once = [Document("", f"{number:04d}") for number in range(5000)]
    parts = [Part("a", 0.5, once * 2), Part("b", 0.5, once)]
    corpus = sampling.split_corpus(
        parts, Letters(), shares=[0.5, 0.5], num_tokens=2000, num_held_out=20, seed=0
    )  # type: ignore[arg-type]
    chosen = [text for subset in corpus.subsets for text in texts(subset)] + [
        document.text for document in corpus.held_out
    ]
    assert len(chosen) == len(set(chosen)) == 500 + 20


def test_the_sample_is_uniform() -> None:
    """A tenth of a file comes evenly from its beginning, middle and end."""
    documents = [Document("", f"{number:05d}") for number in range(20_000)]
    corpus = sampling.split_corpus(
        whole(documents), Letters(), shares=[1.0], num_tokens=10_000, num_held_out=0, seed=5
    )  # type: ignore[arg-type]
    numbers = [int(text) for text in texts(corpus.subsets[0])]
    assert len(numbers) == 2000
    counts = [
        sum(start <= number < start + 5000 for number in numbers)
        for start in range(0, 20_000, 5000)
    ]
    assert all(abs(count - 500) < 5 * (500 * 0.75) ** 0.5 for count in counts), counts


def test_memory_holds_what_is_kept_and_not_the_file(tmp_path: Path) -> None:
    """A file of 24 MB, of which 100 documents are trained on: the peak is a few MB, and most
    documents are never tokenized.
    """
    filler = "x" * 1200
    with (tmp_path / "large.jsonl").open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"question": f"{number}?", "answer": filler}) + "\n")
    size = (tmp_path / "large.jsonl").stat().st_size
    assert size > 24e6
    tokenizer = Letters()
    tracemalloc.start()
    try:
        parts = readers.open_parts(str(tmp_path / "large.jsonl"), documents_module.Form())
        corpus = sampling.split_corpus(
            parts, tokenizer, shares=[1.0], num_tokens=120_000, num_held_out=10, seed=0
        )  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(corpus.held_out) == 10
    assert len(corpus.subsets[0]) == pytest.approx(100, abs=3)
    # a batch of 1000 texts, its token lists (8 bytes a token), and what is kept
    assert peak < 1000 * 1200 * (1 + 8) + 4e6 < size
    assert tokenizer.num_texts < 3000


def test_subsets_do_not_depend_on_rank_or_process(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Two processes, with other ranks and other hash seeds, choose the same documents."""
    source = write_rows(
        tmp_path / "a.jsonl", *({"question": f"{number}?", "answer": "z"} for number in range(3000))
    )
    program = """if True:
        import sys
        from ptl_fast.data import documents, readers, sampling

        class Letters:
            eos_token_id = None

            def __call__(self, texts, verbose):
                return {"input_ids": [list(text.encode()) for text in texts]}

        parts = readers.open_parts(sys.argv[1], documents.Form())
        corpus = sampling.split_corpus(
            parts, Letters(), shares=[.5, .5], num_tokens=9000, num_held_out=9, seed=4
        )
        print([[list(ids) for ids in subset] for subset in corpus.subsets], corpus.held_out)
    """
    outputs = []
    for rank in ("0", "1"):
        settings = {
            **environment,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "PYTHONHASHSEED": rank + "7",
        }
        command = [sys.executable, "-c", program, source]
        outputs.append(
            subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout
        )
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 9000


def test_a_shuffled_source_is_read_no_further_than_needed() -> None:
    read = []

    def endless() -> Iterator[Document]:
        for number in itertools.count():
            read.append(number)
            yield Document("", f"{number:05d}")

    part = Part("endless", 1.0, endless(), shuffled=True)
    corpus = sampling.split_corpus(
        [part], Letters(), shares=[0.5, 0.5], num_tokens=8000, num_held_out=7, seed=0
    )  # type: ignore[arg-type]
    assert len(corpus.held_out) == 7
    assert sum(map(len, corpus.subsets)) == 1600
    assert len(read) <= 1600 + 7 + sampling.BATCH


def test_the_fingerprint_knows_documents_template_and_weights() -> None:
    documents = [Document("q", str(number)) for number in range(40)]

    def fingerprint(*parts: Part) -> str:
        return sampling.split_corpus(
            parts, Letters(), shares=[1.0], num_tokens=None, num_held_out=0, seed=0
        ).fingerprint  # type: ignore[arg-type]

    fingerprints = [
        fingerprint(Part("x", 1.0, documents)),
        fingerprint(Part("x", 1.0, documents[1:])),
        fingerprint(
            Part(
                "x",
                1.0,
                [
                    document._replace(template=documents_module.TEMPLATES["paper"])
                    for document in documents
                ],
            )
        ),
        fingerprint(Part("x", 0.5, documents[:20]), Part("y", 0.5, documents[20:])),
        fingerprint(Part("x", 0.25, documents[:20]), Part("y", 0.75, documents[20:])),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert len({sampling.fingerprint([document]) for document in documents}) == len(documents)


def test_answers_go_with_their_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where a round's part is cut; the same documents are drawn whatever writes them."""
    talks = with_template(tokenizer, chat_templates.CHATML)
    problems = [Document(**problem) for problem in generate(300, 8, "training")]
    corpora = [
        sampling.split_corpus(
            [Part("a", 1.0, [problem._replace(chat=chat) for problem in problems])],
            talks,
            shares=[0.5, 0.5],
            num_tokens=None,
            num_held_out=5,
            seed=1,
            keep_documents=True,
            find_answers=True,
        )
        for chat in (None, EXCHANGE)
    ]
    assert corpora[0].fingerprint != corpora[1].fingerprint
    assert [corpus.num_chats for corpus in corpora] == [0, 295]
    assert [document.question for document in corpora[0].held_out] == [
        document.question for document in corpora[1].held_out
    ]
    for corpus in corpora:
        cut = corpus.cut([[1.0, 2.0], [1.0]])
        assert len(cut.subsets) == 3
        for documents, subset, answers in zip(cut.documents, cut.subsets, cut.answers, strict=True):
            for document, ids, borders in zip(documents, subset, answers, strict=True):
                (expected,) = chats.encode([document], talks, find_answers=True)
                assert (list(ids), borders) == expected


def test_nobody_looks_for_answers_that_nobody_needs(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = [Document(**problem) for problem in generate(30, 8, "training")]
    corpus = sampling.split_corpus(
        [Part("a", 1.0, problems)], tokenizer, shares=[1.0], num_tokens=None, num_held_out=0, seed=1
    )
    assert corpus.answers == [[]]


def test_the_fingerprint_knows_the_turns_of_a_chat() -> None:
    turns = [{"role": "user", "content": "1\n\n2"}, {"role": "assistant", "content": "3"}]
    other = [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}, turns[1]]
    chats_ = [None, EXCHANGE, Chat(turns), Chat(other), Chat(other, [{"name": "add"}])]
    documents = [Document("1\n\n2", "3", chat=chat) for chat in chats_]
    assert len({sampling.fingerprint([document]) for document in documents}) == len(chats_)
