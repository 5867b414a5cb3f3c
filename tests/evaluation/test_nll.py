"""The negative log-likelihood per token is that of the answer alone, whatever the template."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import documents, readers, sampling
from ptl_fast.data.documents import Form
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import nll
from ptl_fast.model import head_chunks
from support import chat_templates
from support.chat_templates import with_template
from support.files import write_rows
from support.models import make_model


def test_nll_is_that_of_the_answer_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("llama")
    documents = [sampling.Document(**problem) for problem in generate(7, 3, "training")] + [
        sampling.Document("", "plain 5")
    ]
    total, count = 0.0, 0
    for document in documents:
        ids = torch.tensor([tokenizer(document.text)["input_ids"]])
        num_prompt = len(tokenizer(document.prompt)["input_ids"]) if document.prompt else 1
        with torch.inference_mode():
            log_probabilities = model(ids).logits.log_softmax(-1)[0, num_prompt - 1 : -1]
        total -= log_probabilities.gather(1, ids[0, num_prompt:, None]).sum().item()
        count += ids.shape[1] - num_prompt
    # the space before an answer is a token of its own here, and belongs to the prompt
    result = nll.answer_nll(model, tokenizer, documents, 3, 512)
    assert result["nll"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("name", documents.TEMPLATES)
def test_nll_counts_the_answer_whatever_the_template(
    tmp_path: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """The oracle takes the tokens that are left when the longest beginning of tokens inside the
    prompt is dropped.
    """
    form = Form(template=documents.make_template(name))
    (document,) = readers.load_documents(
        write_rows(tmp_path / "a.jsonl", {"problem": "1+1?", "solution": "It is 2."}), form
    )
    ids = tokenizer(document.text)["input_ids"]
    num_prompt = max(
        count
        for count in range(len(ids))
        if document.prompt.startswith(tokenizer.decode(ids[:count]))
    )
    assert 3 < num_prompt < len(ids) - 2
    with torch.inference_mode():
        log_probabilities = llama(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(
        float(log_probabilities[index - 1, ids[index]]) for index in range(num_prompt, len(ids))
    )
    result = nll.answer_nll(llama, tokenizer, [document], 1, 100)
    assert result["nll"] == pytest.approx(expected / (len(ids) - num_prompt), rel=1e-4)


def test_nll_of_a_chat_counts_every_turn_of_the_assistant(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Beside documents of other kinds in the same batch."""
    talks = with_template(tokenizer, chat_templates.CHATML)
    said = ("1+1?", "2", "2+2?", "It is 4.")
    roles = ("user", "assistant") * 2
    turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    chat = documents.Document("1+1?", "It is 4.", chat=documents.Chat(turns))
    plain = documents.Document("", "plain 5")
    asked, total, count = "", 0.0, 0
    for question, answer in (said[:2], said[2:]):
        asked += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        before = len(talks(asked)["input_ids"])
        asked += f"{answer}<|im_end|>"
        ids = torch.tensor(talks(asked)["input_ids"])
        with torch.inference_mode():
            log_probabilities = llama(ids[None]).logits[0].log_softmax(-1)
        total -= log_probabilities[before - 1 : -1].gather(1, ids[before:, None]).sum().item()
        count += len(ids) - before
        asked += "\n"
    alone = nll.answer_nll(llama, talks, [chat], 1, 512)["nll"]
    assert alone == pytest.approx(total / count, rel=1e-4)
    num_plain = len(talks(plain.text)["input_ids"]) - 1
    text = nll.answer_nll(llama, talks, [plain], 1, 512)["nll"]
    both = (alone * count + text * num_plain) / (count + num_plain)
    assert nll.answer_nll(llama, talks, [plain, chat], 2, 512)["nll"] == pytest.approx(both, 1e-4)


def test_nll_is_the_same_in_chunks_of_positions(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [sampling.Document(**problem) for problem in generate(20, 3, "training")]
    whole = nll.answer_nll(llama, tokenizer, given, 7, 512)["nll"]
    monkeypatch.setattr(head_chunks, "LOGITS_BYTES", 4 * 384 * 5)
    assert nll.answer_nll(llama, tokenizer, given, 7, 512)["nll"] == pytest.approx(whole, rel=1e-6)


def test_documents_end_where_the_model_has_no_more_positions(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = [sampling.Document("", "one and two and three is six, " * 9)]
    short = make_model("llama", max_position_embeddings=16)
    expected = nll.answer_nll(llama, tokenizer, given, 1, 16)
    assert nll.answer_nll(short, tokenizer, given, 1, 512) == expected
    assert nll.answer_nll(llama, tokenizer, given, 1, 512) != expected
