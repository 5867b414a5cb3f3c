"""Checks before a run starts that need to know the methods, the model or the machine.

They cover names of scorers and recoveries, settings that a method does not support, and what is
installed. Rules between settings alone are in ptl_fast.config.rules, lengths in run/lengths.py.
"""

import importlib.util
import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ptl_fast.base.console import say
from ptl_fast.baselines import SCORERS
from ptl_fast.config.checking import unknown
from ptl_fast.config.trainer import read_deepspeed
from ptl_fast.model import parts
from ptl_fast.model.widths import ffn_width, num_experts
from ptl_fast.recovery import registry
from ptl_fast.run import questions, text
from ptl_fast.scoring.expert_scorers import EXPERT_SCORERS
from ptl_fast.scoring.scorers import LAYER_SCORERS

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from ptl_fast.config.config import Config
    from ptl_fast.pruning.schedule import Round


def check_methods(config: "Config") -> None:
    """Raise ValueError for an unknown method, or for a setting that the chosen method rules out.

    Imports neither torch nor transformers, so a dry run reports such an error at once.
    """
    recovery = config.recovery
    names: list[tuple[str, str, Iterable[str]]] = [
        ("--scorer", config.score.scorer, SCORERS),
        ("--layer-scorer", config.score.layer_scorer, LAYER_SCORERS),
        ("--expert-scorer", config.score.expert_scorer, EXPERT_SCORERS),
        *(("--recovery", name, registry.RECOVERIES) for name in recovery.recoveries),
        *(("--final-recovery", name, registry.RECOVERIES) for name in recovery.final_recoveries),
    ]
    for own_flag, name, choices in names:
        if name not in choices:
            raise ValueError(unknown(own_flag, name, choices))
    # only now: these look the names up
    registry.check_idle("--recovery", recovery.recoveries, is_final=False)
    registry.check_idle("--final-recovery", recovery.final_recoveries, is_final=True)
    _check_training(config)
    _check_teacher(config)
    _check_scoring(config)
    questions.check(config)
    if config.trainer.deepspeed is not None:
        read_deepspeed(config.trainer.deepspeed)


def _check_scoring(config: "Config") -> None:
    """Raise ValueError for a setting that the scorer cannot do with, or lacks."""
    name = config.score.scorer
    scorer = SCORERS[name]
    if config.score.score_during_recovery and scorer.needs_own_pass:
        raise ValueError(
            f"--scorer {name} needs a pass of its own, which --score-during-recovery would spare;"
            " leave that out, or use --scorer output-change"
        )
    if scorer.reads_samples and config.data.protect is None:
        raise ValueError(f"--scorer {name} also looks at English samples; give them with --protect")
    if config.score.weighs_tokens and not (scorer.weighs_tokens or config.prune.compensate):
        raise ValueError(
            f"--token-weights {config.score.token_weights} changes nothing with --scorer {name} and"
            " without --compensate; leave it out, or add --compensate"
        )
    if scorer.add_bias_ is not None and config.prune.compensate:
        raise ValueError(
            f"--scorer {name} puts a bias in the place of what goes, and --compensate puts the"
            " other neurons there; add --compensate false, or use --scorer fluctuation, the same"
            " score without a bias"
        )
    if scorer.reads_samples and config.score.calibrate_on != "all":
        raise ValueError(
            f"--scorer {name} reads whole samples, so --calibrate-on answers has no meaning for it;"
            " leave one of the two out"
        )
    # random numbers and ranks have no unit that a threshold could be in
    if config.prune.threshold is not None and not scorer.measures:
        raise ValueError(
            f"--threshold has no meaning for --scorer {name}; choose a scorer that measures"
            " something"
        )


def _check_training(config: "Config") -> None:
    """Raise ValueError for settings of training on text without a recovery that trains on text.

    Some of them need it to be the only recovery of the round.
    """
    recovery = config.recovery
    on_text = [each.on_text for each in registry.find(recovery.recoveries)]
    if config.score.score_during_recovery and on_text != [True]:
        raise ValueError(
            "--score-during-recovery takes its statistics from training on text; it needs"
            " --recovery cpt or distill alone"
        )
    if config.score.score_during_recovery and (config.score.score_once or recovery.anticipate):
        raise ValueError(
            "--score-during-recovery takes statistics from the end of each round; --score-once"
            " needs none after the first round, and --anticipate needs them before the end; leave"
            " it out"
        )
    # flag: whether it is set, in the words of the messages
    until_recovered = recovery.recovery_split == "until-recovered"
    given = {
        "--recovery-split until-recovered": until_recovered,
        "--lr-schedule run": recovery.lr_schedule == "run",
        "--keep-optimizer-state": recovery.keep_optimizer_state,
        "--anticipate": recovery.anticipate > 0,
        "--liger": config.trainer.liger,
        "--train-on answers": text.learns_answers(config),
    }
    for own_flag in [each for each, is_set in given.items() if is_set]:
        if not any(on_text):
            raise ValueError(
                f"{own_flag} is about training on text; it needs --recovery cpt or distill"
            )
        if own_flag in ("--keep-optimizer-state", "--anticipate") and len(on_text) > 1:
            raise ValueError(
                f"{own_flag} spans a round's end and the next one's beginning; it needs --recovery"
                " cpt or distill alone"
            )


def _check_teacher(config: "Config") -> None:
    """Raise ValueError if distillation cannot have its logits, or if a teacher has no use."""
    recoveries = registry.find(config.recovery.all_recoveries)
    if any(each.teacher_on_disk for each in recoveries) and config.trainer.liger:
        raise ValueError(
            "--liger never stores the logits, which --recovery distill compares; leave one of"
            " the two out"
        )
    has_teacher = any(each.has_teacher for each in recoveries)
    if config.distill.teacher is not None and not has_teacher:
        raise ValueError(
            f"--teacher is for --recovery distill or opd, and --recovery is"
            f" {config.recovery.recovery}; leave one of them out"
        )


def check_support(
    config: "Config", original: "PretrainedConfig", goals_are_solved: bool = False
) -> None:
    """Raise ValueError if the model cannot lose what the settings ask for; imports torch.

    Args:
        goals_are_solved: whether --keep is what the goals were solved into.
    """
    from ptl_fast.model import support

    prune = config.prune
    # slicing changes FFNs too
    needs_neurons = prune.keep < 1 or prune.slice_hidden is not None
    # the goals, which are solved after this, may leave neurons alone
    needs_neurons &= not config.goal.given or goals_are_solved
    drops_experts = prune.keep_experts < 1
    support.check_support(
        original,
        config.model.model or "",
        needs_neurons=needs_neurons,
        drops_experts=drops_experts,
    )
    if parts.parameters_beside(original) is not None:
        _check_parts(config)
    if prune.keep < 1 and num_experts(original):
        _check_experts(config)
    if drops_experts and config.score.score_once:
        raise ValueError(
            "--score-once and --keep-experts do not go together: what experts compute is measured"
            " anew after others went; leave one of the two out"
        )


def _check_parts(config: "Config") -> None:
    """Raise ValueError for what would make the decoder another type of model, which the whole has
    no place for.
    """
    scorer = config.score.scorer
    given = {
        "--slice-hidden": config.prune.slice_hidden is not None,
        f"--scorer {scorer}": SCORERS[scorer].add_bias_ is not None,
    }
    for each in [each for each, is_given in given.items() if is_given]:
        raise ValueError(
            f"{each} makes a model type of its own, which cannot be the text decoder of a model of"
            " several parts; leave it out, or take out the text decoder first, as"
            " docs/checkpoints.md shows"
        )


def _check_experts(config: "Config") -> None:
    """Raise ValueError for a setting that is not there for the neurons of experts."""
    name, prune = config.score.scorer, config.prune
    scorer = SCORERS[name]
    if scorer.reads_samples or "weight_gradients" in scorer.needs:
        raise ValueError(
            f"--scorer {name} does not know experts; use --scorer reconstruction or another one"
        )
    if prune.fits_in_order:
        raise ValueError(
            "--compensate-inputs pruned is not there for experts: other inputs would go to other"
            " experts; leave it out"
        )
    if config.score.score_once and prune.num_dropped_layers:
        raise ValueError(
            "--score-once and --drop-layers do not go together for a model with experts; leave one"
            " of them out"
        )


def check_expert_rows(
    config: "Config", original: "PretrainedConfig", schedule: "Sequence[Round]"
) -> None:
    """Raise ValueError if transformers could not run the experts of some round's model in the type
    of its file, or the original's in that of the computation (``model.expert_rows``).
    """
    # the configs that ptl_fast ships have no experts, and are no transformers' ones
    if isinstance(original, types.SimpleNamespace) or not num_experts(original):
        return
    import torch

    from ptl_fast.model import expert_rows, layers

    computed, narrower = _experts_types(config, original)
    before = f"--model {config.model.model} (model_type {original.model_type})"
    wide = "would be" if config.prune.threshold is None and config.gate.gate is None else "may be"
    widths = _possible_widths(config, original, schedule)
    for hidden, own in sorted(expert_rows.sizes(layers.on_meta(original))):
        for size, what, dtype in (
            (hidden, "its hidden states are", narrower),
            (own, "its experts are", narrower if own in widths else computed),
        ):
            if found := expert_rows.why_not(size, what, dtype):
                helps = expert_rows.why_not(size, what, torch.float32) is None
                other = "--dtype float32 --save-dtype float32" if helps else "another model"
                raise ValueError(
                    f"{before}: {found}, so that the original cannot run in it either; give {other}"
                )
        for width in sorted(widths - {own}, reverse=True):
            if found := expert_rows.why_not(width, f"experts {wide}", narrower):
                least = expert_rows.least_multiple(narrower)
                raise ValueError(
                    f"--width-multiple {config.prune.width_multiple}: {found}; give a"
                    f" --width-multiple that is a multiple of {least}"
                )


def _experts_types(
    config: "Config", original: "PretrainedConfig"
) -> "tuple[torch.dtype, torch.dtype]":
    """The type that a run computes in on this machine, and the narrower of it and its files'."""
    import torch

    from ptl_fast.model import loading, precision

    name, device = config.model.model or "", config.model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    computed = loading.computed_dtype(config.model, device, original)
    folder = loading.weights_folder(name, config.model)
    saved = precision.saved_dtype(config.model, device, folder, original)
    return computed, min(saved, computed, key=lambda dtype: dtype.itemsize)


def _possible_widths(
    config: "Config", original: "PretrainedConfig", schedule: "Sequence[Round]"
) -> set[int]:
    """The widths that a round may leave: the schedule's, but where scores or the gate decide."""
    widths, own = {step.width for step in schedule}, ffn_width(original)
    if config.prune.threshold is not None or config.gate.gate is not None:
        assert isinstance(config.prune.width_multiple, int)
        widths |= {own, *range(min(widths), own, config.prune.width_multiple)}
    return widths


def check_stream(config: "Config", original: "PretrainedConfig") -> None:
    """Raise ValueError for what --stream cannot do with one layer in memory."""
    if not config.model.stream:
        return
    name, prune, score = config.score.scorer, config.prune, config.score
    if not SCORERS[name].is_by_layer:
        able = ", ".join(each for each, scorer in SCORERS.items() if scorer.is_by_layer)
        raise ValueError(
            f"--stream has one layer in memory, and --scorer {name} looks at the whole model; use"
            f" one of {able}"
        )
    given = {
        "--protect": config.data.protect is not None,
        "--threshold": prune.threshold is not None,
        "--drop-layers": prune.num_dropped_layers > 0,
        "--slice-hidden": prune.slice_hidden is not None,
        "--compensate-inputs pruned": prune.fits_in_order,
        "--token-weights": score.weighs_tokens,
        "--score-once": score.score_once,
        "--score-during-recovery": score.score_during_recovery,
        "--anticipate": config.recovery.anticipate > 0,
        "--keep-optimizer-state": config.recovery.keep_optimizer_state,
        "--merge-adapter": config.model.merge_adapter,
        "experts": num_experts(original) > 0,
        "a model of several parts": parts.parameters_beside(original) is not None,
    }
    beyond = [each for each, is_given in given.items() if is_given]
    if beyond:
        raise ValueError(
            f"--stream prunes neurons with one layer in memory, and does not know {beyond[0]};"
            " leave one of the two out"
        )


def check_installation(config: "Config", device: str) -> None:
    """Raise ValueError if the settings need a package or a device that this machine lacks.

    Prints what works, but slower or with fewer protections than on other machines.
    """
    from ptl_fast.recovery import liger
    from ptl_fast.recovery.grpo import rewards
    from ptl_kernels import cpu

    # parsed for its errors: rewards are used only after the first pruning
    rewards.parse_weights(config.grpo.reward_weights)
    if config.trainer.liger:
        liger.check_liger(device)
    # find_spec and not an import: importing vllm takes long
    if config.trainer.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "--rollouts vllm: vllm is not installed; pip install vllm, or use --rollouts"
            " transformers"
        )
    if device == "cpu" and not cpu.available():
        say(
            "Scoring runs on plain PyTorch: the C++ kernels were not built; with a C++ compiler,"
            " install again to have them."
        )
    if config.evaluation.allow_code_execution:
        _check_sandbox()


def _check_sandbox() -> None:
    """Print which protections of the sandbox for generated code this system does not offer.

    Raises:
        ValueError: there is no filter of system calls, so generated code could do harm.
    """
    from ptl_fast.evaluation import sandbox

    missing = sandbox.missing_protections()
    if "seccomp" in missing:
        raise ValueError(
            "--allow-code-execution needs seccomp filters (Linux on x86-64 or aarch64), which this"
            " system does not offer: generated code could signal and change other processes. Run"
            " in a Linux container or virtual machine, or choose tasks that execute no code"
        )
    if missing:
        say(
            "Generated code runs in a sandbox that this system gives no"
            f" {', no '.join(missing)}: see ptl_fast/evaluation/sandbox.py."
        )
