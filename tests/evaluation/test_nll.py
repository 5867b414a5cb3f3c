"""The negative log-likelihood per token is that of the answer alone, whatever the template."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import documents, readers, sampling
from ptl_fast.data.documents import Form
from ptl_fast.demo.problems import generate
from ptl_fast.evaluation import nll
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
