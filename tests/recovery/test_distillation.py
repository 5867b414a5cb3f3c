"""Distillation learns what the formula says, reads the teacher's predictions from disk, and
survives being killed.
"""

import copy
import dataclasses
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel

from ptl_fast import compress
from ptl_fast.config.config import Config
from ptl_fast.data.packing import PackedTokens
from ptl_fast.model import flops, loading
from ptl_fast.recovery.continual_pretraining import examples
from ptl_fast.recovery.continual_pretraining import train as cpt
from ptl_fast.recovery.distillation import loss as loss_module
from ptl_fast.recovery.distillation import teacher_cache
from ptl_fast.recovery.distillation.teacher_cache import Prediction, TeacherCache, most_likely
from ptl_fast.recovery.distillation.train import train as distill
from ptl_fast.recovery.task import HeldOutText, RecoveryTask, TrainingOptions
from ptl_fast.run import dry_run
from support.models import DEMO_MODEL, make_model
from support.numbers import relative_error
from support.recovery import Killed, cast, config, killed_at_step, packed, task

VOCABULARY, LENGTH = 50, 21


@pytest.fixture
def original(tmp_path: Path) -> str:
    """A saved random model with the vocabulary of ``llama``, other weights and another width."""
    folder = tmp_path / "original"
    make_model("llama", intermediate_size=64).save_pretrained(folder)
    return str(folder)


def given(folder: Path, settings: Config | None = None, num_tokens: int = 1500) -> RecoveryTask:
    return task(packed(), num_tokens, settings or config(), folder / "recovery")


def settings(original: str, **changes: object) -> Config:
    return config(**{"recovery": "distill", "teacher": original, "distill_top_k": 16, **changes})


def plain_divergence(
    student: Tensor, teacher: Tensor, tokens: Tensor | None, temperature: float
) -> Tensor:
    """In float64, with the tokens that are not named as one outcome; the whole divergence where
    none are named.
    """
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    if tokens is not None and tokens.shape[-1] < p.shape[-1]:
        named = torch.zeros_like(p, dtype=torch.bool).scatter(-1, tokens, True)
        p, q = (
            torch.cat([each.gather(-1, tokens), each.where(~named, 0).sum(-1, keepdim=True)], -1)
            for each in (p, q)
        )
    return (p * (p.log() - q.log())).sum(-1)


def random_logits(*shape: int) -> tuple[Tensor, Tensor]:
    """Student and teacher; the teacher is sure of itself, as trained models are."""
    return torch.randn(*shape), torch.randn(*shape) * 4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [1, 7, VOCABULARY])
def test_divergence_and_its_gradient_equal_the_plain_formula(
    top_k: int, temperature: float
) -> None:
    """With K the vocabulary, that is the whole divergence."""
    student, teacher = random_logits(40, VOCABULARY)
    prediction = most_likely(teacher, top_k, temperature)
    student.requires_grad_()
    ours = loss_module.divergence(student / temperature, prediction)
    expected = plain_divergence(
        student, teacher, None if top_k == VOCABULARY else prediction.tokens, temperature
    )
    assert relative_error(ours.detach(), expected.detach()) < 1e-5
    gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (ours, expected)]
    assert relative_error(*gradients) < 1e-5
    whole = plain_divergence(student.detach(), teacher, None, temperature)
    assert (ours.detach() <= whole * (1 + 1e-5) + 1e-5).all(), "one outcome for several loses"


def test_sure_models_give_finite_losses() -> None:
    """Probabilities that float32 rounds to 0 and 1, on both sides, agreeing and not; log(1 - sum)
    would be minus infinity.
    """
    sure = torch.zeros(2, VOCABULARY)
    sure[0, 3], sure[1, 4] = 200.0, 200.0
    prediction = most_likely(sure, 2, 1.0)
    agreeing, other = sure.clone().requires_grad_(), sure.flip(0).requires_grad_()
    assert loss_module.divergence(agreeing, prediction).abs().max() < 1e-6
    losses = loss_module.divergence(other, prediction)
    torch.testing.assert_close(losses, torch.full((2,), 200.0))
    assert torch.autograd.grad(losses.sum(), other)[0].isfinite().all()


def batch(num_rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    """Student logits, teacher logits, labels where a third is not predicted, and the teacher's
    prediction.
    """
    student, teacher = random_logits(num_rows, LENGTH, VOCABULARY)
    labels = torch.randint(VOCABULARY, (num_rows, LENGTH)).where(
        torch.rand(num_rows, LENGTH) > 1 / 3, loss_module.IGNORED
    )
    flat = most_likely(teacher.flatten(0, 1), 7, 2.0)
    prediction = Prediction(
        *(tensor.unflatten(0, (num_rows, LENGTH)) for tensor in vars(flat).values())
    )
    return student, teacher, labels, prediction


@pytest.mark.parametrize("chunk_bytes", [4 * VOCABULARY * 5, 2**26])
def test_loss_is_the_mixture_over_counted_positions(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding and documents' first tokens do not count; the chunks, the last one ragged, change
    nothing.
    """
    monkeypatch.setattr(teacher_cache, "CHUNK_BYTES", chunk_bytes)
    student, their_logits, labels, prediction = batch()
    student.requires_grad_()
    total, count = loss_module.summed_loss(student, labels, prediction, 0.7, 2.0)
    expected = torch.zeros((), dtype=torch.float64)
    for row, place in (
        (labels[:, 1:] != loss_module.IGNORED).nonzero().tolist()
    ):  # the label after a place is what it predicts
        entropy = F.cross_entropy(student[row, place].double(), labels[row, place + 1])
        kl = plain_divergence(
            student[row, place], their_logits[row, place], prediction.tokens[row, place], 2.0
        )
        expected = expected + 0.7 * 2.0**2 * kl + 0.3 * entropy
    assert count == (labels[:, 1:] != loss_module.IGNORED).sum()
    assert relative_error(total.detach()[None], expected.detach()[None]) < 1e-5
    gradients = [torch.autograd.grad(each, student)[0] for each in (total, expected)]
    assert relative_error(*gradients) < 1e-5
    assert not gradients[0][:, -1].any(), "nothing follows a sequence's last token"
    assert not gradients[0][:, :-1][labels[:, 1:] == loss_module.IGNORED].any()


def test_without_weight_the_gradient_is_that_of_continual_pre_training(
    llama: PreTrainedModel,
) -> None:
    """At temperature 1, weight 0, whatever the teacher says; with another weight it is not."""
    tokens = packed(num_documents=20)[0:4]
    tokens.pop("mask")
    gradients = {}
    for weight in (None, 0.0, 0.5):
        model = copy.deepcopy(llama)
        if weight is None:
            loss = model(**tokens, use_cache=False).loss
        else:
            logits = model(
                input_ids=tokens["input_ids"], position_ids=tokens["position_ids"], use_cache=False
            ).logits
            flat = most_likely(torch.randn(logits.flatten(0, 1).shape), 7, 1.0)
            prediction = Prediction(
                *(tensor.unflatten(0, logits.shape[:2]) for tensor in vars(flat).values())
            )
            total, count = loss_module.summed_loss(
                logits, tokens["labels"], prediction, weight, 1.0
            )
            loss = total / count
        loss.backward()
        gradients[weight] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in gradients[None].items():
        torch.testing.assert_close(gradients[0.0][name], expected, atol=1e-7, rtol=1e-4)
        assert not torch.allclose(gradients[0.5][name], expected, atol=1e-7, rtol=1e-2), name


# --- the predictions on disk


def cached(
    folder: Path, num_rows: int | None = None, top_k: int = 16
) -> tuple[TeacherCache, PackedTokens]:
    tokens = packed()
    rows = torch.arange(len(tokens))[1:num_rows]
    return TeacherCache(folder, rows, tokens.input_ids.shape[1], top_k, 384), tokens


def fill(
    cache: TeacherCache,
    tokens: PackedTokens,
    load: Callable[[], PreTrainedModel],
    temperature: float = 2.0,
) -> None:
    teacher_cache.fill(cache, tokens, load, 16, temperature, 384, batch_size=2, description="")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences a part."""
    monkeypatch.setattr(teacher_cache, "PART_BYTES", 5 * teacher_cache.row_bytes(32, 16, 384))


def test_predictions_are_read_by_row_as_the_teacher_made_them(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    """Alone in its batch; half precision is all that is lost. Nothing is kept of the sequences that
    were not asked for.
    """
    cache, tokens = cached(tmp_path / "teacher")
    fill(cache, tokens, lambda: llama)
    assert cache.num_parts > 2
    with pytest.raises(KeyError):
        cache.read(0)
    for row in cache.rows:
        one = tokens.rows(torch.tensor([row]))
        logits = llama(
            input_ids=one.input_ids, position_ids=one.position_ids, use_cache=False
        ).logits[0]
        read = cache.read(row)
        expected = (logits.double() / 2.0).log_softmax(-1)
        chosen = read["tokens"].long()
        torch.testing.assert_close(
            read["log_top"].double(), expected.gather(-1, chosen), atol=2e-3, rtol=2e-3
        )
        others = expected.exp().scatter(-1, chosen, 0.0).sum(-1).log()
        torch.testing.assert_close(read["log_rest"].double(), others, atol=1e-5, rtol=1e-5)
        assert (read["log_top"][:, -1:] >= expected.scatter(-1, chosen, -torch.inf) - 1e-2).all(), (
            "the likeliest are kept"
        )


def test_size_on_disk_is_the_predicted_one(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    """But for a header of each file; and a vocabulary above 65536 takes two more bytes a token that
    is kept.
    """
    cache, tokens = cached(tmp_path / "teacher")
    fill(cache, tokens, lambda: llama)
    sizes = [file.stat().st_size for file in (tmp_path / "teacher").iterdir()]
    predicted = len(cache.rows) * teacher_cache.row_bytes(32, 16, 384)
    assert predicted == len(cache.rows) * (32 * (16 * 4 + 4) + 8)
    assert predicted < sum(sizes) < predicted + 400 * len(sizes)
    assert teacher_cache.row_bytes(32, 16, 128256) == 32 * (16 * 6 + 4) + 8
    assert teacher_cache.row_bytes(32, 1000, 384) == 32 * (384 * 4 + 4) + 8, (
        "no more than there are"
    )


def test_killed_pass_goes_on_and_ends_bit_identical(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that were there are not computed again; when all are there, the teacher is not even
    loaded.
    """
    undisturbed, tokens = cached(tmp_path / "a")
    fill(undisturbed, tokens, lambda: llama)
    cache, _ = cached(tmp_path / "b")
    write = teacher_cache.write_atomically

    def die_at_the_third(file: Path, content: bytes) -> None:
        if file.name == "part-00002.safetensors":
            file.with_name(file.name + ".tmp").write_bytes(content[:100])
            raise Killed
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "write_atomically", die_at_the_third)
        with pytest.raises(Killed):
            fill(cache, tokens, lambda: llama)
    assert cache.missing() == list(range(2, cache.num_parts))
    before = (tmp_path / "b" / "part-00000.safetensors").stat().st_mtime_ns
    fill(cache, tokens, lambda: llama)
    assert (tmp_path / "b" / "part-00000.safetensors").stat().st_mtime_ns == before
    files = {
        folder: {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()}
        for folder in "ab"
    }
    assert files["a"] == files["b"]
    fill(cache, tokens, lambda: pytest.fail("the teacher was loaded"))


def test_part_that_was_cut_off_is_computed_again_and_a_damaged_one_is_named(
    small_parts: None, llama: PreTrainedModel, tmp_path: Path
) -> None:
    cache, tokens = cached(tmp_path / "teacher")
    fill(cache, tokens, lambda: llama)
    part = tmp_path / "teacher" / "part-00001.safetensors"
    whole = part.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        again, _ = cached(tmp_path / "teacher")
        assert again.missing() == [1]
        fill(again, tokens, lambda: llama)
        assert part.read_bytes() == whole
    middle = len(whole) // 2
    part.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    again, _ = cached(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"part-00001.safetensors is damaged; delete it"):
        list(map(again.read, again.rows))


def test_full_disk_and_broken_teacher_are_named(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, tokens = cached(tmp_path / "teacher")
    with monkeypatch.context() as patch:
        patch.setattr(
            teacher_cache.shutil,
            "disk_usage",
            lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100),
        )  # type: ignore[attr-defined]
        with pytest.raises(
            ValueError, match=r"predictions for .* sequences need 0.0 GiB .* lower --distill-top-k"
        ):
            fill(cache, tokens, lambda: pytest.fail("the teacher was loaded"))
    with torch.no_grad():
        llama.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="the teacher computes NaN or infinite logits"):
        fill(cache, tokens, lambda: llama)
    assert not (tmp_path / "teacher").exists()


# --- training


def test_student_comes_nearer_to_its_teacher_than_by_text_alone(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """The teacher is random, so that the text says nothing of it."""
    tokens, reference = packed(), loading.load_model(original, config().model, "cpu")
    counted = tokens.mask[:, 1:] & (tokens.position_ids[:, 1:] > 0)

    def distance(student: PreTrainedModel) -> float:
        inputs = {"input_ids": tokens.input_ids, "position_ids": tokens.position_ids}
        with torch.inference_mode():
            logits = [
                model(**inputs, use_cache=False).logits[:, :-1][counted]
                for model in (student, reference)
            ]
        return plain_divergence(logits[0], logits[1], None, 1.0).mean().item()

    before, student = distance(llama), copy.deepcopy(llama)
    cpt(llama, given(tmp_path / "a"))
    distill(student, given(tmp_path / "b", settings(original, distill_weight=1.0)))
    assert distance(student) < 0.8 * before < distance(llama)
    assert "_loss_function" not in student.__dict__


def test_without_weight_training_is_continual_pre_training(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """The whole path: accumulation, the division by the step's tokens, the schedule. The teacher
    says something else.
    """
    other, one = copy.deepcopy(llama), given(tmp_path / "a", num_tokens=600)
    cache = TeacherCache(tmp_path / "teacher", torch.arange(len(one.tokens)), 32, 16, 384)
    fill(cache, one.tokens, lambda: make_model("llama", intermediate_size=64))
    for weight, same in ((0.0, True), (0.5, False)):
        model = copy.deepcopy(llama)
        cpt(
            model,
            given(tmp_path / str(weight), num_tokens=600),
            loss_module.Teaching(cache, weight, 2.0),
        )
        if same:
            cpt(other, one)
        distances = [
            (model.get_parameter(name) - each).norm() / each.norm()
            for name, each in other.named_parameters()
        ]
        assert (max(distances) < 1e-4) == same, max(distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_distillation_ends_bit_identical(
    llama: PreTrainedModel,
    original: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    """Killed in training; what goes on does not need the teacher any more."""
    models_here = [cast(copy.deepcopy(llama), dtype) for _ in range(3)]
    distill(models_here[0], given(tmp_path / "a", settings(original), 600))
    often = settings(original, checkpoint_minutes=0)
    killed_at_step(3, lambda: distill(models_here[1], given(tmp_path / "b", often, 600)))
    monkeypatch.setattr(
        loading, "load_model", lambda *arguments: pytest.fail("the teacher was loaded")
    )
    distill(models_here[2], given(tmp_path / "b", settings(original), 600))
    for name, parameter in models_here[0].named_parameters():
        assert torch.equal(parameter, models_here[2].get_parameter(name)), name
        assert parameter.dtype == dtype


def test_only_what_training_reads_is_predicted(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    one_step = given(tmp_path, settings(original), 10)
    distill(llama, one_step)
    rows = load_file(tmp_path / "recovery" / "teacher" / "part-00000.safetensors")["log_rest"]
    assert len(rows) == 4 < len(one_step.tokens)
    assert len(examples(one_step.tokens, 10**6, 4, 0).unique()) == len(one_step.tokens)


def test_round_that_pruning_has_not_hurt_has_no_teacher(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """until-recovered: it does not train, so nothing would read the predictions."""
    held_out = HeldOutText(nll=lambda: 0.5, num_tokens=1, recovered=1.0)
    unhurt = dataclasses.replace(
        given(tmp_path, settings(original)), options=TrainingOptions(held_out=held_out)
    )
    spent = distill(llama, unhurt)
    assert (spent.num_steps, spent.checks) == (0, [(0, 0.5)])
    assert not list(tmp_path.rglob("part-*"))


def test_model_that_computes_its_own_loss_is_refused(
    llama: PreTrainedModel, original: str, tmp_path: Path
) -> None:
    """Its teacher would be ignored without a word."""

    class Own(type(llama)):  # type: ignore[misc]
        def forward(self, labels: Tensor | None = None, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            if labels is not None:
                output.loss = F.cross_entropy(
                    output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
                )
            return output

    llama.__class__ = Own
    with pytest.raises(ValueError, match="Own computes its own; use --recovery cpt"):
        distill(llama, given(tmp_path, settings(original)))


# --- the whole run


SMALL: dict[str, Any] = {
    "recovery": "distill",
    "rounds": 2,
    "keep": 0.25,
    "learning_rate": 1e-4,
    "lr_schedule": "round",
    "keep_optimizer_state": False,
    "scorer": "output-change",
    "compensate": False,
    "recovery_tokens": 6000,
    "recovery_growth": 1.0,
    "sequence_length": 128,
    "global_batch": 4,
    "micro_batch": 2,
    "calibration_tokens": 1000,
    "eval_tasks": ["nll"],
    "eval_limit": 8,
    "device": "cpu",
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"score_during_recovery": True}, id="score-during-recovery"),
        pytest.param(
            {
                "recovery_split": "until-recovered",
                "recovered_within": 0.012,
                "lr_schedule": "run",
                "keep_optimizer_state": True,
                "anticipate": 1e-4,
                "fused_ffn": True,
            },
            id="spending",
        ),
    ],
)
def test_goes_with_every_way_of_spending_and_leaves_no_predictions(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    report = compress(**{**SMALL, **changes}, output=str(tmp_path / "run"))
    first, second = report["rounds"]
    assert report["final"]["eval"]["nll"]["nll"] < second["eval_pruned"]["nll"]["nll"]
    if "anticipate" in changes:
        assert 0 < first["recovery_tokens"] < 3000 < second["recovery_tokens"], (
            "the first round ended early"
        )
    assert not list(tmp_path.rglob("part-*"))


def test_other_vocabulary_and_settings_without_sense_are_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError,
        match="other has another vocabulary than --model: 1 tokens differ, such as '<new>'",
    ):
        compress(**SMALL, teacher=str(tmp_path / "other"), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--teacher .*nowhere': no such folder"):
        compress(**SMALL, teacher=str(tmp_path / "nowhere"), output=str(tmp_path / "run"))
    few = make_model("llama", vocab_size=200)
    few.save_pretrained(tmp_path / "few")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "few")
    with pytest.raises(
        ValueError,
        match=r"--teacher .*few: its tokenizer gives ids beyond the model's 200 embeddings",
    ):
        compress(**SMALL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    weights = tmp_path / "few" / "model.safetensors"
    make_model("llama").save_pretrained(tmp_path / "few")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"--teacher .*few: model.safetensors is damaged"):
        compress(**SMALL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"--teacher .*few has no weights"):
        compress(**SMALL, teacher=str(tmp_path / "few"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--distill-weight 0 is outside"):
        compress(**SMALL, distill_weight=0)
    with pytest.raises(ValueError, match="--distill-temperature 0 must be"):
        compress(**SMALL, distill_temperature=0)
    with pytest.raises(ValueError, match="--distill-top-k 0 must be at least 1"):
        compress(**SMALL, distill_top_k=0)
    with pytest.raises(ValueError, match="--liger never stores the logits"):
        compress(**SMALL, liger=True)
    with pytest.raises(
        ValueError, match="--teacher is for --recovery distill, and --recovery is cpt"
    ):
        compress(**{**SMALL, "recovery": "cpt"}, teacher="x")


def test_dry_run_counts_the_teachers_pass() -> None:
    """One forward pass of the original for a token, whatever the student's size."""
    dense = types.SimpleNamespace(**json.loads((DEMO_MODEL / "config.json").read_text()))
    smaller = flops.resized(dense, 192, 4)
    plans = [
        config(dry_run=True, recovery=name, sequence_length=256) for name in ("cpt", "distill")
    ]
    cpt_hours, distill_hours = (
        dry_run.predict(smaller, dense, plan, plan.recovery.recoveries, 10**9)["recovery_hours"]
        for plan in plans
    )
    teacher_flops = flops.flops_per_sample(dense, 256, causal=True) / 256 * 1e9
    assert distill_hours - cpt_hours == pytest.approx(
        dry_run.hours(teacher_flops, *dry_run.parse_gpus("1xA100-80GB"))
    )
