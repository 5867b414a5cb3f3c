"""Published strategies as settings: one round of layers (ShortGPT, Just CHOP, the angular
distance), or one round of neurons by any scorer; and settings that exclude one another.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from support.files import write_data
from support.models import make_model
from support.runs import main

FLAGS = (
    "--recovery-tokens 4000 --sequence-length 64 --global-batch 8 --micro-batch 4"
    " --calibration-tokens 1000 --eval-limit 5"
)
FLAGS += " --width-multiple 8 --device cpu"


@pytest.fixture
def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_data(tmp_path / "data.jsonl", 500)
    (tmp_path / "general.txt").write_text(
        "\n\n".join(f"Sentence {number} about nothing much." for number in range(200))
    )
    return ["--model", "model", "--data", "data.jsonl", *FLAGS.split()]


@pytest.mark.parametrize("layer_scorer", ["last", "block-influence", "angular"])
def test_one_round_of_layers(layer_scorer: str, prepared: list[str], tmp_path: Path) -> None:
    """Just CHOP (arXiv 2305.14864) drops the last layers at once and trains on; ShortGPT those of
    least block influence.
    """
    flags = [
        "--keep",
        "1",
        "--drop-layers",
        "2",
        "--layers-per-round",
        "2",
        "--layer-scorer",
        layer_scorer,
        "--output",
        "out",
    ]
    assert main([*prepared, *flags]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(record["kind"], record["num_layers"]) for record in report["rounds"]] == [
        ("layers", 3)
    ]
    assert report["rounds"][0]["recovery_tokens"] == 4000
    plan = json.loads((tmp_path / "out" / "round-01" / "plan.json").read_text())
    statistics = load_file(tmp_path / "out" / "round-01" / "statistics.safetensors")
    cosine_L = statistics["change_L3"][:, 2] / statistics["num_tokens"]
    expected = {
        "last": [3, 4],
        "block-influence": sorted(cosine_L.argsort(descending=True)[:2].tolist()),
        "angular": sorted(statistics["angle_L"].argsort()[:2].tolist())
        if layer_scorer == "angular"
        else [],
    }
    assert plan["dropped_layers"] == expected[layer_scorer]
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final").config.num_hidden_layers
        == 3
    )


@pytest.mark.parametrize("scorer", ["fluctuation", "gradient", "reference"])
def test_prune_once_by_every_new_scorer(scorer: str, prepared: list[str], tmp_path: Path) -> None:
    """The neurons that went are those of lowest score, and with --protect for the others the
    general text has its say.
    """
    flags = [
        "--rounds",
        "1",
        "--keep",
        "0.5",
        "--protect",
        "general.txt",
        "--protect-share",
        "0.25",
        "--scorer",
        scorer,
    ]
    assert (
        main([*prepared, *flags, "--recovery", "none", "--all-statistics", "--output", "out"]) == 0
    )
    plan = json.loads((tmp_path / "out" / "round-01" / "plan.json").read_text())
    statistics = load_file(tmp_path / "out" / "round-01" / "statistics.safetensors")
    assert {"sum_LI", "absolute_LI", "maximum_LI"} <= statistics.keys()
    kept_LK = torch.tensor(plan["kept_neurons"])
    assert kept_LK.shape == (5, 24)
    if scorer == "reference":
        selected_LI = statistics["scores"] < 0
        assert plan["num_redundant"] == selected_LI.sum(1).tolist()
        for kept, selected in zip(kept_LK, selected_LI, strict=True):
            gone = sorted(set(range(48)) - set(kept.tolist()))
            rest = [neuron for neuron in range(48) if not selected[neuron]]
            assert gone == sorted((selected.nonzero().flatten().tolist() + rest)[:24])
        assert "redundant" in (tmp_path / "out" / "report.md").read_text()
    else:
        assert plan["num_redundant"] is None
        unprotected = statistics["scores"].argsort(dim=1, descending=True)[:, :24]
        common = [
            len(set(one.tolist()) & set(other.tolist()))
            for one, other in zip(unprotected, kept_LK, strict=True)
        ]
        assert all(count >= 24 - 12 for count in common), (
            "only the protected quarter may stay against the scores"
        )
        assert plan["num_rescued"] > 0


def test_reconstruction_looks_at_protected_text_too(prepared: list[str], tmp_path: Path) -> None:
    """Prices and columns change with it, statistics of the data do not; a share of nothing is no
    protection.
    """
    found = {}
    for share in (None, "0", "0.5"):
        flags = ["--rounds", "1", "--keep", "0.5", "--recovery", "none", "--output", f"out-{share}"]
        flags += [] if share is None else ["--protect", "general.txt", "--protect-share", share]
        assert main([*prepared, *flags]) == 0
        weights = load_file(tmp_path / f"out-{share}" / "final" / "model.safetensors")
        found[share] = (
            load_file(tmp_path / f"out-{share}" / "round-01" / "statistics.safetensors"),
            weights,
        )
    assert all(statistics.keys() == found[None][0].keys() for statistics, _ in found.values())
    assert torch.equal(found["0.5"][0]["square_LI"], found[None][0]["square_LI"])
    for part in (0, 1):
        assert all(
            torch.equal(value, found[None][part][name]) for name, value in found["0"][part].items()
        )
    assert not torch.equal(found["0.5"][0]["scores"], found[None][0]["scores"])
    down = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(found["0.5"][1][down], found[None][1][down])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            "--scorer gradient --score-during-recovery",
            "--scorer gradient needs a pass of its own",
            id="gradient",
        ),
        pytest.param(
            "--scorer reference --protect general.txt --score-during-recovery",
            "reference needs a pass",
            id="reference",
        ),
        pytest.param("--scorer reference", "give them with --protect", id="no-general-text"),
        pytest.param(
            "--scorer reference --protect general.txt --threshold 1",
            "no meaning for --scorer reference",
            id="no-scale",
        ),
        pytest.param(
            "--scorer random --threshold 1", "no meaning for --scorer random", id="random"
        ),
        pytest.param(
            "--threshold -1", "--threshold -1.0 must be a number that is at least 0", id="negative"
        ),
        pytest.param("--threshold nan", "threshold", id="nan"),
        pytest.param("--threshold 1 --neurons-per-round 8", "give one of the two", id="two-ways"),
        pytest.param("--threshold 1 --keep 1", "lower --keep", id="nothing-may-go"),
    ],
)
def test_settings_that_exclude_one_another(
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "model", "--data", "data.jsonl", *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
