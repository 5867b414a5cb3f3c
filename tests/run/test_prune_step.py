"""What goes in a round: by whose scores, on which tokens, and when that is decided."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptl_fast import compress
from ptl_fast.pruning.schedule import Round
from ptl_fast.run import prune_step
from ptl_fast.scoring import token_weights
from ptl_kernels import hole_filling
from support.runs import RUN, plans


def test_first_scores_decide_every_round(tiny_run: dict[str, str], tmp_path: Path) -> None:
    """Followed by hand through three rounds of neurons and one of layers: always the best of the
    first round's order stay.
    """
    settings = {
        **RUN,
        "drop_layers": 1,
        "order": "alternate",
        "recovery": "none",
        "score_once": True,
    }
    compress(**tiny_run, **settings, output=tmp_path)
    first = load_file(tmp_path / "round-01" / "statistics.safetensors")["scores"]
    dropped: list[int] = []
    originals = [list(range(48)) for _ in range(5)]
    for plan in plans(tmp_path):
        if plan["kind"] == "layers":
            dropped = plan["dropped_layers"]
            originals = [names for layer, names in enumerate(originals) if layer not in dropped]
            continue
        order = hole_filling(
            torch.tensor(plan["kept_neurons"]), len(originals[0])
        ).order_LK.tolist()
        originals = [
            [names[place] for place in places]
            for names, places in zip(originals, order, strict=True)
        ]
        scores = [
            row for layer, row in enumerate(first) if not (len(originals) == 4 and layer in dropped)
        ]
        for names, row in zip(originals, scores, strict=True):
            assert sorted(names) == sorted(row.argsort(descending=True)[: plan["width"]].tolist())
    assert [plan["kind"] for plan in plans(tmp_path)] == ["neurons", "layers", "neurons", "neurons"]
    assert dropped
    # the round's own file has the scores of what was left then, so that a decision can be looked up
    # as in any other run
    last = load_file(tmp_path / "round-04" / "statistics.safetensors")["scores"]
    assert last.shape == (4, 32)


def test_first_scores_of_protected_text_are_kept_too(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        **RUN,
        "recovery": "none",
        "score_once": True,
        "protect": tiny_run["data"],
        "protect_share": 0.4,
        "rounds": 2,
    }
    settings["scorer"] = "activation"
    compress(**tiny_run, **settings, output=tmp_path)
    first = load_file(tmp_path / "round-01" / "statistics.safetensors")["protect_scores"]
    (one, two) = plans(tmp_path)
    later = load_file(tmp_path / "round-02" / "statistics.safetensors")["protect_scores"]
    order = hole_filling(torch.tensor(one["kept_neurons"]), 48).order_LK
    assert torch.equal(later, first.gather(1, order))
    for row, kept in zip(later, two["kept_neurons"], strict=True):
        assert set(row.topk(int(0.4 * len(row))).indices.tolist()) <= set(kept)


def test_every_round_scores_on_the_calibration_tokens_however_small_its_part(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        **RUN,
        "recovery": "none",
        "recovery_split": "growing",
        "recovery_growth": 8.0,
        "calibration_tokens": 3000,
    }
    compress(**tiny_run, **settings, output=tmp_path)
    for number in (1, 2, 3):
        counted = int(
            load_file(tmp_path / f"round-{number:02d}" / "statistics.safetensors")["num_tokens"]
        )
        assert 3000 <= counted < 3000 + 2 * 64, "as few sequences as hold them"


def test_anticipated_neurons_are_exactly_those_removed(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """The next round's plan is on disk before the round ends, and is not decided again."""
    seen: dict[str, tuple[bool, list]] = {}
    penalty = prune_step.next_penalty

    def note(context: Any, following: Round) -> Any:
        own, before = (context.folder.round(following.number - back) for back in (0, 1))
        made = penalty(context, following)
        seen[str(following.number)] = (before.record.exists(), own.plan.read()["kept_neurons"])
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_step, "next_penalty", note)
        compress(**tiny_run, **{**RUN, "anticipate": 1e-3}, output=tmp_path)
    assert seen == {
        str(plan["round"]): (False, plan["kept_neurons"]) for plan in plans(tmp_path)[1:]
    }


def test_statistics_from_recovery_decide_the_next_round(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Also where one round drops a layer and the other neurons; the round that ends the run takes
    none.
    """
    shape = {"rounds": 1, "drop_layers": 1, "order": "layers-then-neurons", "keep": 0.75}
    scoring = {"score_during_recovery": True, "scorer": "output-change"}
    compress(**tiny_run, **{**RUN, **shape, **scoring, "recovery_tokens": 4000}, output=tmp_path)
    taken = load_file(tmp_path / "round-01" / "next_statistics.safetensors")
    used = load_file(tmp_path / "round-02" / "statistics.safetensors")
    assert int(taken["num_tokens"]) > 0
    assert all(torch.equal(tensor, used[name]) for name, tensor in taken.items())
    assert not (tmp_path / "round-02" / "next_statistics.safetensors").exists()


def test_weights_come_from_a_probe_without_the_neurons_of_the_unweighted_plan(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what unweighted pruning leaves, and the plan then follows the weighted scores."""
    settings = {**RUN, "recovery": "none", "rounds": 1}
    compress(**tiny_run, **settings, output=tmp_path / "none")
    (plain,) = plans(tmp_path / "none")
    measure, probes = token_weights.divergence, list[list[list[int]]]()

    def note(*args: Any, **biases: Any) -> torch.Tensor:
        probes.append([probe.any(0).nonzero().flatten().tolist() for probe in args[-1]])
        return measure(*args, **biases)

    monkeypatch.setattr(token_weights, "divergence", note)
    compress(**tiny_run, **settings, token_weights="divergence", output=tmp_path / "weighted")
    (weighted,) = plans(tmp_path / "weighted")
    assert probes == [plain["kept_neurons"]]
    assert weighted["kept_neurons"] != plain["kept_neurons"]
    unweighted, stored = (
        load_file(tmp_path / name / "round-01" / "statistics.safetensors")
        for name in ("none", "weighted")
    )
    assert stored.keys() - unweighted.keys() == {"divergence_ST"}
    assert torch.equal(stored["num_tokens"], unweighted["num_tokens"])
    assert not torch.allclose(stored["square_LI"], unweighted["square_LI"], rtol=1e-3)
    (record,) = json.loads((tmp_path / "weighted" / "report.json").read_text())["rounds"]
    assert record["token_weights"]["num_tokens"] == int(stored["num_tokens"])
    assert record["token_weights"]["effective_tokens"] < int(stored["num_tokens"])
    assert "## Token weights" in (tmp_path / "weighted" / "report.md").read_text()
    assert "Token weights" not in (tmp_path / "none" / "report.md").read_text()


def test_without_compensation_the_probe_has_the_models_own_columns(
    tiny_run: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []
    measure = token_weights.divergence

    def note(
        model: Any, tokens: Any, size: int, downs: Any, probe: Any, **biases: Any
    ) -> torch.Tensor:
        probed.extend(zip([down.weight_HI.clone() for down in downs], probe, strict=True))
        return measure(model, tokens, size, downs, probe, **biases)

    monkeypatch.setattr(token_weights, "divergence", note)
    settings = {**RUN, "recovery": "none", "rounds": 1, "scorer": "activation"}
    weights = {"token_weights": "divergence", "compensate": False}
    compress(**tiny_run, **settings, **weights, output=tmp_path)
    for own_HI, probe_HI in probed:
        kept = probe_HI.any(0)
        assert int(kept.sum()) == 24
        assert torch.equal(probe_HI[:, kept], own_HI[:, kept])


def test_scores_that_know_no_weights_stay_and_the_compensation_is_weighted(
    tiny_run: dict[str, str], tmp_path: Path
) -> None:
    """Also those that --score-once keeps from the first round; later ones have weights too."""
    for name, changes in (
        ("random", {"scorer": "random", "rounds": 1}),
        ("once", {"scorer": "reconstruction", "score_once": True, "rounds": 2}),
    ):
        weights: dict[str, dict] = {"none": {}, "weighted": {"token_weights": "divergence"}}
        for kind, setting in weights.items():
            output = tmp_path / name / kind
            settings = {**RUN, "recovery": "none", **changes, **setting}
            compress(**tiny_run, **settings, output=output)
        last = f"round-0{changes['rounds']}/statistics.safetensors"
        before, after = (load_file(tmp_path / name / kind / last) for kind in weights)
        assert after.keys() - before.keys() == {"divergence_ST"}
        if name == "random":
            assert torch.equal(before["scores"], after["scores"])
        final = [tmp_path / name / kind / "final/model.safetensors" for kind in weights]
        assert final[0].read_bytes() != final[1].read_bytes()
