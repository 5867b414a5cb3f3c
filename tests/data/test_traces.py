"""Own traces: how questions are asked, which answers are kept, and their files."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.base import distributed
from ptl_fast.base.run_files import TraceFolder
from ptl_fast.data import answers, sampling, traces
from ptl_fast.data.answers import BOXED_REQUEST
from ptl_fast.data.documents import TEMPLATES, Chat, Document
from ptl_fast.data.generation import Sampling
from ptl_fast.data.traces import (
    Form,
    Trace,
    Tracer,
    collect,
    fingerprint,
    kept,
    own_documents,
    summary,
    write_part,
)
from ptl_fast.demo.problems import generate
from support.models import DEMO_MODEL

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{{ end }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "[INST] {{ message.content }} [/INST]{% else %} {{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
GREEDY = Sampling(max_new_tokens=80)
PROBLEMS = [Document(each["question"], each["answer"]) for each in generate(150, 5, "training")]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def judge(document: Document, text: str) -> bool | None:
    return answers.final_answer(text) == answers.checkable_answer(document.answer)


def make_tracer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling = GREEDY
) -> Tracer:
    form = Form(tokenizer=tokenizer)
    return Tracer(model=model, form=form, sampling=sampling, batch_size=24, judge=judge)


def trace(right: bool | None, finished: bool = True, own: str = "4") -> Trace:
    return Trace("2+2?", "4", own, 3, 2, finished, right)


# --- asking


def test_without_a_chat_template_a_question_has_the_form_of_its_document(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    form = Form(tokenizer=tokenizer)
    assert form.prompt(Document("2+2?", "#### 4")) == "Question: 2+2?\nAnswer:"
    paper = Document("2+2?", "#### 4", TEMPLATES["paper"])
    assert form.prompt(paper) == "Question: 2+2?Answer:"
    assert form.end_of_turn == ""


def test_a_chat_model_is_asked_in_its_template_and_to_box_what_can_be_boxed(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    chat = with_template(tokenizer, CHATML.replace("{{ end }}", "{{ eos_token }}"))
    form = Form(tokenizer=chat)
    beginning, end = "<|im_start|>user\n", f"{tokenizer.eos_token}\n<|im_start|>assistant\n"
    assert form.prompt(Document("2+2?", "#### 4")) == f"{beginning}2+2?\n{BOXED_REQUEST}{end}"
    assert form.prompt(Document("Why?", "Because.")) == f"{beginning}Why?{end}"
    own = Form(tokenizer=chat, request="Be brief.")
    assert own.prompt(Document("Why?", "Because.")) == f"{beginning}Why?\nBe brief.{end}"
    assert Form(tokenizer=chat, request="").prompt(PROBLEMS[0]).count("\n") == 3
    code = form.prompt(Document("Write f.", "def f(): return 3", tests="assert f() == 3"))
    assert code.startswith(f"{beginning}Write f.\nYour code should pass these tests:\n\nassert f()")


def test_of_a_chat_the_last_answer_is_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2?"},
        {"role": "assistant", "content": "#### 4"},
    ]
    document = Document("Be brief. 1+1? 2 And 2+2?", "#### 4", chat=Chat(turns))
    chat = with_template(tokenizer, CHATML.replace("{{ end }}", "<|im_end|>"))
    assert Form(tokenizer=chat).prompt(document) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n"
        f"<|im_start|>user\nAnd 2+2?\n{BOXED_REQUEST}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert turns[3]["content"] == "And 2+2?"


@pytest.mark.parametrize(
    ("end", "between"), [("{{ eos_token }}", ""), ("<end_of_turn>", "<end_of_turn>")]
)
def test_a_turn_ends_as_the_template_ends_it(
    tokenizer: PreTrainedTokenizerBase, end: str, between: str
) -> None:
    form = Form(tokenizer=with_template(tokenizer, CHATML.replace("{{ end }}", end)))
    question = Document("2+2?", "#### 4")
    document = form.document(question, trace(True, own="It is 4."))
    assert document.text == f"{form.prompt(question)}It is 4.{between}"


def test_a_prompt_begins_once_and_does_not_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the tokenizer adds these tokens to every text, and the template writes one itself."""
    eager = with_template(tokenizer, INSTRUCT)
    eager.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", eager.bos_token_id), (str(eager.eos_token), eager.eos_token_id)]
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {eager.eos_token}", special_tokens=special
    )
    ids = Form(tokenizer=eager, request="").prompt_ids(Document("2+2?", "4"))
    assert ids.count(eager.bos_token_id) == 1 == ids.index(eager.bos_token_id) + 1
    assert eager.eos_token_id not in ids
    assert eager.decode(ids[1:]) == "[INST] 2+2? [/INST]"


def test_a_trace_is_trained_on_as_it_was_asked_and_said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tracer = make_tracer(model, tokenizer)
    made = tracer.answer(PROBLEMS[:5], 0, lambda _: None)
    documents = [tracer.form.document(*pair) for pair in zip(PROBLEMS, made, strict=False)]
    for ids, document, each in zip(
        sampling.tokenize(documents, tokenizer), PROBLEMS, made, strict=False
    ):
        prompt = tracer.form.prompt_ids(document)
        assert each.finished
        assert ids[: len(prompt)] == prompt
        assert tokenizer.decode(ids[len(prompt) : -1]) == each.own
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) == each.num_tokens
        assert each.right == (answers.final_answer(each.own) == document.answer.split("#### ")[1])


def test_plain_text_is_not_asked_nor_what_leaves_no_room(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    text, long = Document("", "1+1=2"), Document("0" * 500, "#### 4")
    made = make_tracer(model, tokenizer).answer([text, long], 0, lambda _: None)
    assert (made[0].own, made[0].finished, made[0].right) == ("1+1=2", True, None)
    assert made[0].num_tokens == len(tokenizer.encode("1+1=2")) + 1
    assert (made[1].own, made[1].finished) == ("", False)
    form = Form(tokenizer=tokenizer)
    assert list(own_documents(form, [text, long], made, 0.0)) == [(text, text)]


# --- keeping


def test_answers_that_were_cut_off_or_say_nothing_are_never_kept() -> None:
    made = [trace(True), trace(False, finished=False), trace(None, own=" \n"), trace(None)]
    assert kept(made, 0.0) == [True, False, False, True]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [True, True, True, True, True, True, True]),
        (1.0, [False, True, True, False, True, False, True]),
        # the first wrong one would be all of them; after two right ones, one wrong is a third
        (0.5, [False, True, True, True, True, True, True]),
        (0.7, [False, True, True, False, True, True, True]),
    ],
)
def test_wrong_answers_stay_within_their_share(share: float, expected: list[bool]) -> None:
    made = [trace(right) for right in (False, True, True, False, True, False, None)]
    assert kept(made, share) == expected
    for length in range(len(made)):
        assert kept(made[:length], share) == expected[:length], "later ones do not matter"


def test_a_summary_counts_questions_alone() -> None:
    text = Trace("", "abc", "abc", 3, 0, True, None)
    made = [trace(True), trace(False), text, trace(False, finished=False)]
    assert summary(made, 1.0) == {
        "asked": 3,
        "finished": 2,
        "judged": 2,
        "right": 1,
        "kept": 1,
        "mean_tokens": 2.0,
    }


# --- files


def test_documents_are_asked_until_there_are_enough_tokens_and_no_part_twice(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "PART", 8)
    folder, tracer = TraceFolder(tmp_path / "traces"), make_tracer(model, tokenizer)
    amounts = {"num_tokens": 900.0, "right_share": 1.0}
    made = collect(folder, 3, PROBLEMS, tracer, **amounts)
    tokens = [each.num_tokens for each in made if each.right]
    assert sum(tokens) >= 900 > sum(tokens[:-8])
    files = folder.parts()
    assert [file.name for file in files] == [f"03-{n:05d}.jsonl" for n in range(len(made) // 8)]
    assert len(made) % 8 == 0
    assert json.loads(files[0].read_text().split("\n")[1]) == made[1]._asdict()
    before = fingerprint(folder)
    assert collect(folder, 3, PROBLEMS, None, **amounts) == made, "from disk alone"
    files[1].unlink()
    with pytest.raises(ValueError, match=r"03-00001\.jsonl is missing or damaged"):
        collect(folder, 3, PROBLEMS, None, **amounts)
    assert collect(folder, 3, PROBLEMS, tracer, **amounts) == made
    assert fingerprint(folder) == before
    files[1].write_text("{")
    with pytest.raises(ValueError, match=r"03-00001\.jsonl is missing or damaged"):
        collect(folder, 3, PROBLEMS, None, **amounts)
    assert collect(folder, 3, PROBLEMS, tracer, **amounts) == made


def test_without_an_amount_every_document_is_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    documents = [*PROBLEMS[:3], Document("", "1+1=2")]
    made = collect(
        TraceFolder(tmp_path),
        0,
        documents,
        make_tracer(model, tokenizer),
        num_tokens=None,
        right_share=0.0,
    )
    assert [each.question for each in made] == [each.question for each in documents]


def test_sampled_answers_depend_on_the_seed_and_their_place_alone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "PART", 4)
    tracer = make_tracer(model, tokenizer, Sampling(max_new_tokens=12, temperature=4.0))
    same = [PROBLEMS[0]] * 8

    def collected(name: str, seed: int) -> list[Trace]:
        folder = TraceFolder(tmp_path / name)
        return collect(folder, 0, same, tracer, num_tokens=None, right_share=0.0, seed=seed)

    first = collected("a", 1)
    assert first == collected("b", 1)
    assert first != collected("c", 2)
    assert first[:4] != first[4:], "each batch has its own random numbers"


def test_ranks_divide_the_parts_and_use_as_many_as_one_rank_does(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three ranks, of which the other two have written their parts already."""
    monkeypatch.setattr(traces, "PART", 8)
    tracer = make_tracer(model, tokenizer)
    amounts = {"num_tokens": 900.0, "right_share": 0.0}
    alone = collect(TraceFolder(tmp_path / "alone"), 0, PROBLEMS, tracer, **amounts)
    several = TraceFolder(tmp_path / "several")
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for rank in (1, 2, 0):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "is_main", lambda: True)
        if rank:
            for number in range(rank, 6, 3):
                made = tracer.answer(PROBLEMS[8 * number :][:8], number * 8, lambda _: None)
                write_part(several, 0, number, made)
    assert collect(several, 0, PROBLEMS, tracer, **amounts) == alone
    assert (
        several.part(0, 0).path.read_bytes() == (tmp_path / "alone" / "00-00000.jsonl").read_bytes()
    )
