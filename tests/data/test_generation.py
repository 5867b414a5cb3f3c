"""Answers of a model in memory: greedy or sampled, batched, cut off, and without repetition."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ptl_fast.data import generation
from ptl_fast.data.generation import (
    Answer,
    Sampling,
    answer_all,
    answer_batch,
    by_length,
    repeats,
    stop_tokens,
)
from ptl_fast.demo.problems import as_prompt, generate
from support.models import DEMO_MODEL

GREEDY = Sampling(max_new_tokens=80)
SAMPLED = Sampling(max_new_tokens=12, temperature=8.0, seed=3)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer.encode(as_prompt(each)) for each in generate(7, 5, "training")]


def greedy_alone(model: PreTrainedModel, prompt: list[int], ends: list[int], most: int) -> Answer:
    """The twin: one prompt, no padding, no cache, the likeliest token each time."""
    tokens: list[int] = []
    while len(tokens) < most:
        logits: Tensor = model(torch.tensor([prompt + tokens]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in ends:
            return Answer(tokens, finished=True)
        tokens.append(token)
    return Answer(tokens, finished=False)


@pytest.mark.parametrize("selectable", [True, False])
def test_a_batch_answers_as_each_prompt_alone_and_shrinks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    selectable: bool,
) -> None:
    ends = stop_tokens(model, tokenizer)
    assert len({len(prompt) for prompt in prompts}) > 1  # so that some are padded
    with torch.inference_mode():
        expected = [greedy_alone(model, prompt, ends, 80) for prompt in prompts]
    if not selectable:
        monkeypatch.setattr(generation, "SELECTABLE", set())
    sizes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: sizes.append(tuple(arguments[0].shape))
    )
    found, seconds = answer_all(model, tokenizer, prompts, GREEDY, 3, "test")
    assert found == expected
    assert seconds > 0
    hook.remove()
    assert len({len(answer.tokens) for answer in expected}) > 1
    assert {rows for rows, _ in sizes} == {1, 2, 3}
    # without the cache what is left is read anew
    num_reads = sum(length > 1 for _, length in sizes)
    assert num_reads == 3 if selectable else num_reads > 3


def test_an_answer_that_is_too_long_is_not_finished(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    cut = answer_batch(model, tokenizer, prompts, Sampling(max_new_tokens=4))
    assert [(len(answer.tokens), answer.finished) for answer in cut] == [(4, False)] * len(prompts)


def test_sampling_depends_on_the_seed_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    torch.manual_seed(17)
    untouched = torch.rand(1)
    torch.manual_seed(17)
    first = answer_batch(model, tokenizer, prompts, SAMPLED)
    assert torch.equal(torch.rand(1), untouched)  # nobody else's numbers changed
    assert answer_batch(model, tokenizer, prompts, SAMPLED) == first
    other = Sampling(max_new_tokens=12, temperature=8.0, seed=4)
    assert answer_batch(model, tokenizer, prompts, other) != first


def test_the_models_own_generation_settings_are_off(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    changed = copy.deepcopy(model)
    settings = changed.generation_config
    assert settings is not None
    settings.repetition_penalty, settings.do_sample, settings.temperature = 5.0, True, 3.0
    expected = answer_batch(model, tokenizer, prompts, GREEDY)
    assert answer_batch(changed, tokenizer, prompts, GREEDY) == expected


def test_a_turns_end_ends_an_answer_too(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    """Chat models name the token in their generation config, beside the tokenizer's own."""
    (whole,) = answer_batch(model, tokenizer, prompts[:1], GREEDY)
    changed = copy.deepcopy(model)
    assert changed.generation_config is not None
    turn = whole.tokens[3]
    changed.generation_config.eos_token_id = [tokenizer.eos_token_id, turn]
    assert stop_tokens(changed, tokenizer) == [tokenizer.eos_token_id, turn]
    (cut,) = answer_batch(changed, tokenizer, prompts[:1], GREEDY)
    assert cut == Answer(whole.tokens[: whole.tokens.index(turn)], finished=True)


def test_training_goes_on_in_its_mode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    model.train()
    answer_batch(model, tokenizer, prompts, Sampling(max_new_tokens=2))
    assert model.training
    model.eval()


def test_without_an_end_nothing_is_generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    endless, changed = copy.deepcopy(model), copy.deepcopy(tokenizer)
    assert endless.generation_config is not None
    endless.generation_config.eos_token_id = changed.eos_token = None
    with pytest.raises(ValueError, match="set eos_token"):
        stop_tokens(endless, changed)


def test_an_answer_that_repeats_itself_is_stopped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    looping, other_end = copy.deepcopy(model), copy.deepcopy(tokenizer)
    with torch.no_grad():  # the same logits everywhere, so token 0 for ever
        for parameter in looping.parameters():
            parameter.zero_()
    assert looping.generation_config is not None
    looping.generation_config.eos_token_id = None
    other_end.eos_token = tokenizer.pad_token
    free = Sampling(max_new_tokens=60)
    stopped = Sampling(max_new_tokens=60, stop_repeating=True)
    assert [len(each.tokens) for each in answer_batch(looping, other_end, prompts, free)] == [
        60
    ] * len(prompts)
    answers = answer_batch(looping, other_end, prompts, stopped)
    assert [(len(each.tokens), each.finished) for each in answers] == [(32, False)] * len(prompts)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3], False),
        ([7] * 31, False),
        ([7] * 32, True),
        ([9, 8, 5] + [1, 2, 3, 4, 5, 6, 7, 8] * 4, True),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 4 + [9], False),  # it got out of it
        (list(range(65)) * 4, False),  # a longer piece: a table, a list of cases
        (list(range(64)) * 4, True),
        (list(range(20)) * 3, False),
    ],
)
def test_repetition_is_at_the_end_and_often(tokens: list[int], expected: bool) -> None:
    assert repeats(tokens) is expected


def test_the_longest_prompts_come_first() -> None:
    prompts = [[1], [1, 2, 3], [1, 2], [1, 2, 3]]
    assert by_length(prompts, 3) == [[1, 3, 2], [0]]
