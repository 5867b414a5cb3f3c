"""Other methods' scores by hand and by their papers' formulas in float64, on every family; what
their runs remove.
"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ptl_fast import compress
from ptl_fast.base import distributed
from ptl_fast.baselines import SCORERS, peers
from ptl_fast.data import packing
from ptl_fast.model.families import feed_forwards, find_family
from ptl_fast.scoring.statistics import Statistics, collect
from support.models import make_model
from support.runs import RUN, main, plans
from support.scores import evidence

PEERS = ["minitron", "wanda", "llm-pruner", "flap"]


@pytest.fixture
def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(13)
    return [
        torch.randint(2, 384, (count,), generator=generator).tolist() for count in (6, 11, 4, 9, 1)
    ]


@pytest.fixture
def one_layer() -> PreTrainedModel:
    """Three neurons whose columns of the down projection are (3, 4), (-1, 0) and (0, 2)."""
    model = make_model(
        "llama",
        num_hidden_layers=1,
        intermediate_size=3,
        hidden_size=2,
        num_attention_heads=1,
        head_dim=2,
    )
    model.model.layers[0].mlp.down_proj.weight.data = torch.tensor(
        [[3.0, -1.0, 0.0], [4.0, 0.0, 2.0]]
    )
    return model


def statistics(**sums: torch.Tensor) -> Statistics:
    """Of 3 tokens."""
    square_LI = torch.tensor([[9.0, 16.0, 25.0]], dtype=torch.float64)
    return Statistics(
        num_tokens=torch.tensor(3), square_LI=square_LI, change_L3=torch.zeros(1, 3), **sums
    )


def activations(model: PreTrainedModel, documents: list[list[int]]) -> list[torch.Tensor]:
    """Each document's activations, (num_layers, tokens, width), run one by one."""
    taken: list[torch.Tensor] = []
    handles = [
        ffn.down.register_forward_pre_hook(lambda module, args: taken.append(args[0][0].double()))
        for ffn in feed_forwards(model, find_family(model)).values()
    ]
    with torch.inference_mode():
        for document in documents:
            model(torch.tensor([document]), use_cache=False)
    for handle in handles:
        handle.remove()
    num_layers = len(handles)
    return [
        torch.stack(taken[first : first + num_layers]) for first in range(0, len(taken), num_layers)
    ]


def test_minitron_by_hand(one_layer: PreTrainedModel) -> None:
    """Two documents: means 3 and 4 have the L2 norm 5; the root mean square is 5 / sqrt(2)."""
    squares = torch.tensor([[9.0 + 16.0, 0.0, 2.0]], dtype=torch.float64)
    taken = statistics(document_LI=squares, num_documents=torch.tensor(2))
    scores = peers.minitron(evidence(taken, one_layer))
    assert scores[0].tolist() == pytest.approx([5 / math.sqrt(2), 0.0, 1.0])


def test_minitron_of_a_model_ranks_as_the_paper_does(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    """Mean over the sequence, L2 over the batch. A mean over all tokens ranks otherwise."""
    model, family = any_model.double(), find_family(any_model)
    tokens = packing.pack(documents, 16, 1)
    taken = collect(model, family, tokens, 2, extra=SCORERS["minitron"].needs)
    scores = peers.minitron(evidence(taken, model))
    means_DLI = torch.stack([each.abs().mean(1) for each in activations(model, documents)])
    norm_LI = means_DLI.norm(dim=0)
    torch.testing.assert_close(scores * len(documents) ** 0.5, norm_LI, rtol=1e-5, atol=0.0)
    assert torch.equal(scores.argsort(1), norm_LI.argsort(1))
    every_LTI = torch.cat(activations(model, documents), dim=1)
    assert not torch.equal(scores.argsort(1), every_LTI.abs().mean(1).argsort(1))


def test_wanda_by_hand(one_layer: PreTrainedModel) -> None:
    """Norms 3, 4, 5 times |3| + |4|, |-1| + 0 and 0 + |2|; output-change has 5, 1 and 2 instead."""
    assert peers.wanda(evidence(statistics(), one_layer)).tolist() == [[21.0, 4.0, 10.0]]
    other = SCORERS["output-change"].compute(evidence(statistics(), one_layer))
    assert other.tolist() == [[15.0, 4.0, 10.0]]


def test_wanda_of_a_model_is_the_sum_of_its_weights_scores(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    """|W| * ||a||_2, weight by weight, as for unstructured pruning."""
    model, family = any_model.double(), find_family(any_model)
    taken = collect(model, family, packing.pack(documents, 16, 1), 2)
    norm_LI = torch.cat(activations(model, documents), dim=1).norm(dim=1)
    expected = torch.stack(
        [
            (ffn.down.weight.detach().abs() * norm_I).sum(0)
            for ffn, norm_I in zip(feed_forwards(model, family).values(), norm_LI, strict=True)
        ]
    )
    scores = peers.wanda(evidence(taken, model))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0.0)


def test_llm_pruner_by_hand(one_layer: PreTrainedModel) -> None:
    sums = torch.tensor([[6.0, 2.0, 0.0]], dtype=torch.float64)
    taken = statistics(weight_gradient_LI=sums, num_predicted=torch.tensor(4))
    assert peers.llm_pruner(evidence(taken, one_layer)).tolist() == [[1.5, 0.5, 0.0]]


def test_llm_pruner_scores_the_loss_of_one_batch(
    any_model: PreTrainedModel, documents: list[list[int]]
) -> None:
    """As in the authors' code: transformers' own mean loss of a batch, one backward pass, and
    (weight * weight.grad).abs() summed over rows of gate and up and columns of down.
    """
    model, family = any_model.double(), find_family(any_model)
    batch = torch.tensor([document[:4] for document in documents[:4]])
    model(batch, labels=batch, use_cache=False).loss.backward()
    ffn = list(feed_forwards(model, family).values())[2]
    salience = [(each.weight * each.weight.grad).abs() for each in (*ffn.inputs, ffn.down)]
    rows = torch.cat([each.sum(1) for each in salience[:-1]])
    expected_I = (rows[: ffn.width] + rows[ffn.width :] + salience[-1].sum(0)).detach()
    model.zero_grad()
    tokens = packing.pack(batch.tolist(), 8, 1)
    taken = collect(model, family, tokens, 3, extra=frozenset({"weight_gradients"}))
    scores = peers.llm_pruner(evidence(taken, model))
    torch.testing.assert_close(scores[2], expected_I, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", PEERS)
def test_scores_do_not_depend_on_how_often_the_corpus_says_the_same(
    llama: PreTrainedModel, documents: list[list[int]], name: str
) -> None:
    """So that a threshold means the same on any corpus. (A sample variance has T - 1.)"""
    scorer, family, scores = SCORERS[name], find_family(llama.double()), []
    for text in (documents, documents * 2):
        taken = collect(llama, family, packing.pack(text, 16, 1), 2, extra=scorer.needs)
        score_LI = scorer.compute(evidence(taken, llama))
        if name == "flap":
            score_LI = score_LI * (taken.num_tokens - 1) / taken.num_tokens
        scores.append(scorer.per_token(score_LI, taken.num_tokens))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", PEERS)
def test_two_ranks_score_as_one(
    llama: PreTrainedModel,
    documents: list[list[int]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of two ranks reads every second batch. What the other rank has is added where ranks
    add: sums of statistics, and gradients before their product with the weights.
    """
    scorer, family = SCORERS[name], find_family(llama)
    tokens = packing.pack(documents, 16, 1)
    whole = scorer.compute(evidence(collect(llama, family, tokens, 1, extra=scorer.needs), llama))
    sent: list[dict[str, torch.Tensor]] = []
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "largest", lambda tensor: tensor)
        patch.setattr(distributed, "rank", lambda: 1)
        patch.setattr(
            distributed,
            "summed",
            lambda own: sent.append({**own}) or own,  # type: ignore[func-returns-value]
        )
        collect(llama, family, tokens, 1, extra=scorer.needs)
        received = iter(sent)
        patch.setattr(distributed, "rank", lambda: 0)

        def add(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            other = next(received)
            return {key: value + other[key] for key, value in own.items()}

        patch.setattr(distributed, "summed", add)
        taken = collect(llama, family, tokens, 1, extra=scorer.needs)
    torch.testing.assert_close(scorer.compute(evidence(taken, llama)), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PEERS)
def test_a_run_removes_what_scores_lowest_and_protects(
    name: str, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        **tiny_run,
        **RUN,
        "rounds": 1,
        "recovery": "none",
        "scorer": name,
        "compensate": False,
        "protect": tiny_run["data"],
        "protect_share": 0.25,
    }
    report = compress(**settings, output=tmp_path)
    (plan,) = plans(tmp_path)
    taken = load_file(tmp_path / "round-01" / "statistics.safetensors")
    for layer, kept in enumerate(plan["kept_neurons"]):
        safe = set(taken["protect_scores"][layer].topk(12).indices.tolist())
        assert safe <= set(kept)
        ranked = taken["scores"][layer].argsort(descending=True).tolist()
        others = [each for each in ranked if each not in safe]
        assert set(kept) == safe | set(others[: 24 - len(safe)])
    assert plan["scorer"] == name
    assert report["final"]["width"] == 24


@pytest.mark.parametrize("name", PEERS)
def test_a_threshold_on_a_peers_score_is_in_its_unit(
    name: str, tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Above every score, all go that may; below, none."""
    settings = {**tiny_run, **RUN, "rounds": 1, "recovery": "none", "scorer": name}
    settings["compensate"] = False
    most = compress(**settings, threshold=1e9, output=tmp_path / "most")
    none = compress(**settings, threshold=0.0, output=tmp_path / "none")
    assert (most["final"]["width"], none["final"]["width"]) == (24, 48)


@pytest.mark.parametrize("name", ["minitron", "llm-pruner"])
def test_scores_that_recovery_cannot_take_need_their_own_pass(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--preset",
        "demo",
        "--dry-run",
        "--score-during-recovery",
        "--compensate",
        "false",
        "--scorer",
        name,
    ]
    assert main(flags) == 2
    assert "needs a pass of its own" in capsys.readouterr().err
