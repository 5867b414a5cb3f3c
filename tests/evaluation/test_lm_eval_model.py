"""lm-eval's batches fit into memory, and what they measure does not depend on that."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.base import progress
from ptl_fast.evaluation import lm_eval_model


def test_batches_are_as_large_as_their_logits_allow() -> None:
    """Gemma 3's vocabulary on a machine of 24 GB, and one of 400 words."""
    assert lm_eval_model.fitting(500, 262_144, 24 * 2**30) == 3
    assert lm_eval_model.fitting(131_072, 262_144, 24 * 2**30) == 1
    assert lm_eval_model.fitting(100, 400, 24 * 2**30) > 1000
    assert lm_eval_model.memory(torch.device("cpu")) > 2**30


def test_smaller_batches_find_the_same(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    requests: list[Any] = []
    for index in range(11):
        ids = torch.randint(2, 384, (7 + index,), generator=generator).tolist()
        requests.append((("", str(index)), ids[:-3], ids[-3:]))
    model = lm_eval_model.make(llama, tokenizer, 8)
    sizes: list[int] = []
    call = model._model_call
    monkeypatch.setattr(model, "_model_call", lambda inps: sizes.append(len(inps)) or call(inps))
    whole = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert max(sizes) == 8
    assert model._longest(requests) == 17
    sizes.clear()
    budget = 2 * 4 * 17 * 384 * 3 / lm_eval_model.LOGITS_SHARE
    monkeypatch.setattr(lm_eval_model, "memory", lambda device: int(budget))
    small = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert max(sizes) == 3
    assert model.batch_size == 8
    assert [found for found, _ in small] == pytest.approx([found for found, _ in whole], rel=1e-5)
    assert [greedy for _, greedy in small] == [greedy for _, greedy in whole]


def test_long_prompts_are_cut_and_longer_answers_are_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = lm_eval_model.make(llama, tokenizer, 2)
    end = [2 + number % 300 for number in range(model.max_length + 1)]
    cut = [(("", ""), [5] * 10 + end[:-3], end[-3:]), (("", ""), [9] * 99 + end[:-3], end[-3:])]
    (first, _), (second, _) = model._loglikelihood_tokens(cut, disable_tqdm=True)
    assert first == pytest.approx(second)
    with pytest.raises(ValueError, match=f"tokens, more than the model's {model.max_length} pos"):
        model._loglikelihood_tokens([(("", ""), [5], end)], disable_tqdm=True)


def test_bars_of_lm_eval_become_the_runs_progress(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, seen = lm_eval_model.make(llama, tokenizer, 2), []
    call, own = model._model_call, lm_eval_model.lm_eval.models.huggingface.tqdm
    requests: list[Any] = [(("", str(number)), [5, 6, number], [7]) for number in range(8, 12)]

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        seen.extend(step.text() for step in progress._innermost())
        return call(inputs)

    monkeypatch.setattr(model, "_model_call", watched)
    with lm_eval_model.reporting("dense: task"):
        model._loglikelihood_tokens(requests)
    assert seen == ["dense: task 0/4", "dense: task 2/4"]
    assert not progress._innermost()
    assert lm_eval_model.lm_eval.models.huggingface.tqdm is own
    assert capfd.readouterr() == ("", "")


def test_a_bar_of_a_generator_leaves_it_whole() -> None:
    with lm_eval_model.reporting("task"):
        bar = lm_eval_model.lm_eval.models.huggingface.tqdm
        assert list(bar(number for number in range(3))) == [0, 1, 2]
        assert list(bar([0, 1, 2], desc="theirs")) == [0, 1, 2]
