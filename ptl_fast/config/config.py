"""Every setting of a run. Each field's docstring is its help text on the command line."""

import dataclasses
import json
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Settings that may differ between a run and its continuation: they do not change what is computed.
NOT_PART_OF_THE_RESULT = frozenset(
    {
        "output",
        "overwrite",
        "debug",
        "dry_run",
        "dry_run_gpus",
        "checkpoint_minutes",
        "keep_rounds",
        "allow_code_execution",
    }
)
# Those that may differ although they change rounding: a run that was out of memory must not begin
# anew.
ONLY_ROUNDING = frozenset(
    {"micro_batch", "grpo_micro_batch", "eval_batch", "gradient_checkpointing"}
)

NOT_ON_TEXT = frozenset(
    {"none", "grpo"}
)  # recoveries that do not train on --recovery-tokens of the data's text
DEEPSPEED_FOLDER = Path(__file__).parent / "presets" / "deepspeed"
PATHS = ("model", "data", "protect", "teacher", "output", "deepspeed")  # may be path objects
MAX_GROWTH = 1000
MAX_SEED = 2**20  # seeds of rounds are a thousand times larger, and NumPy takes 32 bits


@dataclass(kw_only=True)
class Config:
    """Settings of ``python -m ptl_fast.compress`` and of ``ptl_fast.compress(...)``."""

    model: str | None = None
    """Folder or hub name of the causal language model to compress. Without it, the bundled demo
    runs.
    """

    data: str | None = None
    """Reasoning data for scoring and recovery: a .jsonl, .json, .parquet or .txt file, a folder, or
    a hub data set (OWNER/NAME[/FOLDER][:[CONFIG:]SPLIT]). Columns {question, answer}, {query,
    response}, {problem, solution}, {prompt, completion}, {instruction, output}, {messages}, {text}
    or {content}. Commas separate sources; SOURCE@WEIGHT gives each its part of every round's
    training tokens, without weights they are joined."""

    question_column: str | None = None
    """The column of --data and of nll=FILE that holds the question, where it is not one of the
    names above.
    """

    answer_column: str | None = None
    """The column that holds the answer, for example answer where solution would be taken."""

    text_column: str | None = None
    """The column that holds plain text; it goes before question and answer."""

    template: str = "lines"
    """How question and answer are joined, in training and for nll: lines (Question: ..., new line,
    Answer: ...), paper (as the paper's code: nothing between question and 'Answer: '), or a text
    with {question} that ends with {answer}."""

    streaming: bool = False
    """Read --data's hub data sets and folders without storing them, in an order drawn by the seed,
    and only until --recovery-tokens are there: a sample of the shards that come first. For what is
    too large for the disk; memory is bounded without it too."""

    protect: str | None = None
    """Text (same formats) whose skills shall stay though --data lacks them: other general text,
    problems of another kind.
    """

    protect_share: float = 0.5
    """How much --protect's text counts. --scorer reconstruction and --compensate give its tokens
    this share of the weight in their least squares; other scorers never remove this share of each
    layer's neurons, those that rank highest on that text. Scorer reference has a use of its own for
    it, and no other."""

    keep: float = 0.65
    """Fraction of FFN neurons that stay in each layer at the end, in (0, 1]. With 1 and no dropped
    layers, the model is only trained."""

    neurons_per_round: int | None = None
    """FFN neurons removed from each layer in a round; the number of rounds follows."""

    threshold: float | None = None
    """Eq. 3: remove only neurons that score at most this, the same number in every layer (as many
    as the layer with the fewest has, down to a multiple of --width-multiple), and never below
    --keep. Scores are per token: for activation and output-change the root mean square over tokens,
    which is Eq. 4's norm divided by the square root of the number of tokens, so that a threshold
    does not depend on the corpus's size. The other scores are taken as they are; random and
    reference have none. A round that finds nothing to remove does not train."""

    rounds: int | None = None
    """Rounds in which neurons are removed (default: 5, or fewer where --width-multiple allows fewer
    steps).
    """

    steps: Literal["proportional", "equal"] = "proportional"
    """How large the --rounds are: proportional removes the same fraction of what is left in each,
    equal (as --neurons-per-round does) the same number of neurons, so that the last round removes
    the largest fraction."""

    drop_layers: int = 0
    """Whole decoder layers to remove."""

    layers_per_round: int = 1
    """Decoder layers removed in one round."""

    slice_hidden: float | None = None
    """The SliceGPT baseline instead of neurons and layers: fraction of the residual stream's
    dimensions that stays, in (0, 1), rounded to a multiple of 8. One round; --keep is then 1, and
    neither --keep below 1 nor --drop-layers goes with it. The result loads after ``import
    ptl_fast.slicegpt``."""

    order: Literal["neurons-then-layers", "layers-then-neurons", "alternate"] = (
        "neurons-then-layers"
    )
    """Which rounds come first."""

    scorer: str = "reconstruction"
    """Neuron importance: reconstruction (Eq. 2 for sets of neurons: how far the layer's output is
    at best from what it was without the neuron and all that score lower, when the others make up
    for them as --compensate lets them; a float64 matrix of width x width a layer, and where all of
    them need more than 8 GiB, a pass over --calibration-tokens for each 8 GiB), output-change (Eq.
    2: L2 norm of the activation times the norm of the down_proj column, which is what the neuron
    adds to the layer's output), activation (Eq. 4: without the column), fluctuation (FLAP: variance
    of the activation times the column's squared norm), gradient (first-order Taylor: sum over
    tokens of |activation times its loss gradient|; needs a backward pass), magnitude (L2 norm of
    the weights), random, reference (the rule that the method's authors published, as a baseline:
    neurons are selected on 10 samples of --data and 1000 of --protect, at one position each, and
    deleted in index order; if it selects too few, the rest in index order follows)."""

    compensate: bool = True
    """When neurons go, change the down projection's columns of those that stay so that the layer's
    output on --calibration-tokens changes least (least squares). The checkpoint stays an ordinary
    one. Costs what --scorer reconstruction costs, and with it no further pass where its matrices
    fit."""

    layer_scorer: str = "residual"
    """Layer importance: residual (Eq. 5: mean L2 norm of the layer's change of the residual
    stream), block-influence (ShortGPT: 1 - cosine), angular (mean angle between the layer's input
    and output, over pi), last (removes the deepest)."""

    width_multiple: int | Literal["auto"] = 128
    """FFN widths are rounded to a multiple of this. auto is 128 on a GPU, whose tensor cores work
    in tiles of 128, and is measured on a CPU (kept in the run's width_multiple.json). For tensor
    parallelism, give 128 times the GPUs that share the FFN."""

    recovery: str = "cpt"
    """How a round recovers: cpt (continual pre-training on the data), distill (the same, learning
    also from the original model's predictions), grpo (reinforcement learning on the data's
    problems), several one after another (cpt,grpo), or none."""

    final_recovery: str | None = None
    """Recovery once more, after the last round, on a part of the data of its own, as large as the
    last round's; its tokens come on top of --recovery-tokens. grpo is the paper's "+ RL-Zero"."""

    recovery_tokens: int | None = None
    """Training tokens over all rounds (default: the data once), and so how many documents are kept
    in memory. More than there is repeats each round's part. For grpo it says only how many
    documents there are."""

    recovery_split: Literal["growing", "equal", "until-recovered"] = "growing"
    """How the recovery tokens are shared: growing gives each round --recovery-growth times the
    tokens of the round before; until-recovered starts from the same shares, but a round that
    pruning has not hurt (--recovered-within) does not train, and others end soon after they have
    recovered; the tokens and data that this saves go to later rounds. The last round uses all that
    is left."""

    recovery_growth: float = 2.0
    """The factor of --recovery-split growing and until-recovered. With --recovery-tokens, a round's
    share is raised to the tokens of one optimizer step where it would be smaller."""

    recovered_within: float = 0.02
    """With until-recovered: a round has recovered when the negative log-likelihood per answer token
    of held-out documents of --data is at most this many nats above the original model's. It is
    measured every so many steps that this costs at most a tenth of the training's arithmetic. The
    round then goes on for a third of its steps so far, in which its learning rate decays."""

    lr_schedule: Literal["round", "run"] = "round"
    """Which stretch a learning-rate schedule spans: each round, or the whole run, so that warm-up
    comes once and later rounds go on where the rounds before ended."""

    keep_optimizer_state: bool = False
    """Begin a round's recovery with Adam's moments of the round before: those of removed neurons
    and layers go, the others move as the weights do. Not with --deepspeed."""

    anticipate: float = 0.0
    """Weight of a penalty on the neurons that the next round will remove (DReSS, arXiv 2501.17905):
    in the last quarter of a round's recovery, this times the sum of their weights' L2 norms is
    added to the loss. The next round's neurons are chosen, on its data, when the penalty begins,
    and are exactly those that go. 0 is without."""

    gate: str | None = None
    """The guard: TASK:METRIC, one of the results of --eval-tasks (nll:nll, or a label and a
    metric), that a round must keep within --max-drop of the original model's. A round that fails
    first trains longer (--max-extra-recovery). Then the run goes back to the model before it, and
    from there on removes half as much at once. If one --width-multiple, or one layer, is still too
    much, the run stops there, and its result is the last model that passed. --final-recovery is not
    judged."""

    max_drop: float | None = None
    """With --gate: how much worse than the original model the metric may be, in its own unit: 0.05
    is five points of an accuracy, and 0.05 nats of nll. Exactly so much passes."""

    max_extra_recovery: float = 0.5
    """With --gate: how much longer a round that fails may train, as a fraction of what it was
    given, on the same data, besides what it did not use of that (until-recovered); at most half of
    it between two measurements. These tokens, and those of rounds that are undone, come on top of
    --recovery-tokens. 0 goes back at once, but for a round that did not use all."""

    learning_rate: float = 1e-5
    """Peak learning rate of recovery (warm-up 5%, then a cosine; with until-recovered and a
    schedule each round, constant until the round has recovered)."""

    teacher: str | None = None
    """With distill: folder or hub name of the model to learn from, with the vocabulary of --model
    (default: --model itself).
    """

    distill_weight: float = 0.9
    """With distill: the share of the divergence from the teacher in the loss, in (0, 1]; the rest
    is cpt's loss.
    """

    distill_temperature: float = 2.0
    """With distill: what both models' logits are divided by in the divergence. Above 1, unlikely
    tokens count more.
    """

    distill_top_k: int = 64
    """With distill: how many of the teacher's likeliest tokens are kept of each position; all
    others are one. On disk, a token of the data takes 4 bytes for each (6 with a vocabulary above
    65536) until its round is finished."""

    grpo_steps: int | None = None
    """Optimizer steps of grpo in a round (default: as many as see each problem of the round's part
    of --data once).
    """

    grpo_prompts: int = 32
    """Problems in one step of grpo, over all ranks."""

    grpo_rollouts: int = 8
    """Responses that are sampled to each of them, and compared with one another."""

    grpo_temperature: float = 1.0
    """Temperature of that sampling."""

    grpo_learning_rate: float = 1e-6
    """Learning rate of grpo (warm-up 5%, then constant)."""

    grpo_kl: float = 0.0
    """Weight of the KL divergence from the model as it was when the round's grpo began. 0 needs no
    second model in memory.
    """

    grpo_prompt: Literal["auto", "template", "chat"] = "auto"
    """How grpo asks: template (the beginning of --template, as cpt trains it), or chat (the
    tokenizer's chat template, and the request to put the answer in a box). auto is chat where there
    is a chat template and nothing in the run trains on --template."""

    grpo_prompt_tokens: int = 1024
    """Problems whose prompt is longer are left out of grpo."""

    grpo_response_tokens: int = 1024
    """Where a response of grpo is cut off."""

    grpo_micro_batch: int | None = None
    """Rollouts in one forward pass of one rank, at most (default: as many as fit, at their longest,
    into the tokens of --micro-batch sequences, and at least one)."""

    reward_weights: str = "accuracy=0.9,format=0.1"
    """What grpo rewards, NAME=WEIGHT[,NAME=WEIGHT]: accuracy (the marked answer equals the data's,
    by math-verify) and format (an answer is marked at all: in a box, or after #### or "answer
    is")."""

    rollouts: Literal["transformers", "vllm"] = "transformers"
    """What samples grpo's responses; vllm must be installed, and shares the GPUs with the training.
    """

    sequence_length: int = 1024
    """Tokens in a packed sequence."""

    global_batch: int = 32
    """Sequences in an optimizer step, over all ranks and accumulation steps."""

    micro_batch: int = 2
    """Sequences in one forward pass of one rank."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass of recovery: less memory, about a third more time.
    """

    calibration_tokens: int = 131072
    """Tokens of each round's subset (and of --protect) that score neurons and layers. Where the
    subset holds fewer, those of other
    rounds follow: few tokens make poor least squares, and scoring does not train on them."""

    all_statistics: bool = False
    """Also store each neuron's sum, sum of magnitudes and largest magnitude in
    statistics.safetensors.
    """

    fused_ffn: bool = False
    """Train on ptl_kernels' fused activation: it keeps one activation less for the backward pass
    than eager modules do, and rounds once where they round twice."""

    liger: bool = False
    """Train on Liger's kernels (pip install liger-kernel; GPUs only): norms, rotary embedding, FFN,
    and a loss that never stores the logits. With --fused-ffn or --score-during-recovery, the FFN
    stays ours."""

    score_once: bool = False
    """Score neurons, and layers, only in the first round that removes them: later rounds remove the
    next ones of that order.
    """

    score_during_recovery: bool = False
    """Take each next round's statistics from the last --calibration-tokens of a round's recovery
    (or all of a shorter one), so from that round's data, instead of a pass of its own; the first
    round still needs one. Brings --fused-ffn with it. Not for the scorers reconstruction, gradient
    and reference."""

    eval_tasks: list[str] | str = field(default_factory=lambda: ["nll"])
    """What to measure, separated by commas: [LABEL:]TASK[=FILE]. TASK is nll (negative
    log-likelihood per token of answers; without =FILE, of a held-out part of --data), a task
    shipped here (demo_arithmetic, ptl_gsm8k, ptl_minerva_math, ptl_math500, ptl_mbpp), or any
    lm-eval task. =FILE makes a task read that jsonl file instead of the hub; the ptl_ tasks also
    take a hub name there. The first one leads the tables."""

    allow_code_execution: bool = False
    """Allow ptl_mbpp to run the code that the model writes: in a child process without network,
    with limits on time, memory and files."""

    eval_limit: int | None = None
    """Examples per evaluation task (default: all)."""

    eval_batch: int = 16
    """Examples in one batch of an evaluation."""

    output: str | None = None
    """Folder of the run (default: runs/demo, or runs/MODEL). The same command continues a run that
    was interrupted.
    """

    overwrite: bool = False
    """Delete the run that --output holds and start again."""

    seed: int = 0
    """Seed of data order, subsets and random scores."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type: auto is the checkpoint's own on a GPU and float32 on a CPU. Recovery keeps
    float32 master weights.
    """

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    attn: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention: auto is flash-attention 2 where it is importable and the weights are half
    precision on a GPU, else SDPA.
    """

    deepspeed: str | None = None
    """zero2, zero3, or a DeepSpeed JSON file; start with the deepspeed or torchrun launcher for
    several ranks.
    """

    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside a round's recovery."""

    keep_rounds: int = 1
    """How many of the newest rounds keep their weights on disk."""

    dry_run: bool = False
    """Print what each round would do (width, layers, parameters, FLOPs, tokens, memory, hours) from
    the config alone, and stop. Needs no --data. The names of scorers and evaluation tasks are
    checked by the run itself."""

    dry_run_gpus: str = "1xA100-80GB"
    """The GPUs that --dry-run predicts memory and hours for, COUNTxNAME: A100-40GB, A100-80GB,
    H100-80GB or H200.
    """

    debug: bool = False
    """Show tracebacks and the libraries' own log messages."""

    preset: str | None = None
    """Settings by name (see ptl_fast/config/presets); flags override them."""

    def __post_init__(self) -> None:
        self.eval_tasks = (
            self.eval_tasks.split(",")
            if isinstance(self.eval_tasks, str)
            else list(self.eval_tasks)
        )
        for name in PATHS:
            value = getattr(self, name)
            setattr(self, name, None if value is None else os.fspath(value))

    def check(self) -> None:
        """Raise ValueError for a setting that no model could satisfy."""
        for name, hint in typing.get_type_hints(Config).items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in typing.get_args(
                hint
            ):
                choices = ", ".join(typing.get_args(hint))
                raise ValueError(
                    f"unknown --{name.replace('_', '-')} {getattr(self, name)}; choose {choices}"
                )
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"--seed {self.seed} is outside [0, {MAX_SEED})")
        if not 0 < self.keep <= 1:
            raise ValueError(
                f"--keep {self.keep} is outside (0, 1]; it is the fraction of FFN neurons that"
                " stay, for example 0.65"
            )
        for name in (
            "learning_rate",
            "recovery_growth",
            "checkpoint_minutes",
            "grpo_learning_rate",
            "grpo_temperature",
            "grpo_kl",
        ):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} must be a finite number"
                )
        if not 0 <= self.protect_share < 1:
            raise ValueError(f"--protect-share {self.protect_share} is outside [0, 1)")
        if not 0 < self.recovery_growth <= MAX_GROWTH:
            raise ValueError(
                f"--recovery-growth {self.recovery_growth} is outside (0, {MAX_GROWTH}]"
            )
        if self.learning_rate <= 0 or self.checkpoint_minutes < 0:
            raise ValueError("--learning-rate must be positive, --checkpoint-minutes at least 0")
        at_least_one = (
            "neurons_per_round rounds layers_per_round width_multiple recovery_tokens"
            " sequence_length global_batch micro_batch"
        )
        at_least_one += (
            " grpo_steps grpo_prompts grpo_prompt_tokens grpo_response_tokens"
            " grpo_micro_batch distill_top_k"
        )
        for name in [
            *at_least_one.split(),
            "calibration_tokens",
            "eval_limit",
            "eval_batch",
            "keep_rounds",
        ]:
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.sequence_length < 2:
            raise ValueError(
                f"--sequence-length {self.sequence_length} must be at least 2: each token is"
                " predicted from those before"
            )
        if not self.eval_tasks:
            raise ValueError(
                "--eval-tasks names no task; name at least one, such as nll: the tables are about it"
            )
        if self.drop_layers < 0:
            raise ValueError(f"--drop-layers {self.drop_layers} must be at least 0")
        if self.slice_hidden is not None:
            self._check_slicing(self.slice_hidden)
        if self.model is not None and self.data is None and not self.dry_run:
            raise ValueError(
                "--data is missing: give a file or hub name with the reasoning data that --model"
                " should keep its skill on"
            )

        if self.streaming and self.recovery_tokens is None:
            raise ValueError(
                "--streaming reads only as much as training needs; say how much with"
                " --recovery-tokens"
            )
        self._check_recovery()
        self._check_spending()
        self._check_guard()

    def _check_guard(self) -> None:
        """Raise ValueError where --gate lacks something, or does not go with another setting."""
        if (self.gate is None) != (self.max_drop is None):
            raise ValueError(
                "--gate says what must hold and --max-drop how far it may fall; give both or"
                " neither"
            )
        if not 0 <= self.max_extra_recovery < math.inf:
            raise ValueError(
                f"--max-extra-recovery {self.max_extra_recovery} must be a number that is at least 0"
            )
        if self.gate is None or self.max_drop is None:
            return
        if not 0 <= self.max_drop < math.inf:
            raise ValueError(f"--max-drop {self.max_drop} must be a number that is at least 0")
        if self.threshold is not None:
            raise ValueError(
                "--gate halves the number of neurons that a round removes, which --threshold"
                " leaves to the scores; leave one of the"
                " two out"
            )

    @property
    def recoveries(self) -> list[str]:
        """The recoveries of a round, in order."""
        return [name.strip() for name in self.recovery.split(",")]

    @property
    def final_recoveries(self) -> list[str]:
        """Those after the last round."""
        return (
            []
            if self.final_recovery is None
            else [name.strip() for name in self.final_recovery.split(",")]
        )

    @property
    def trains_on_text(self) -> bool:
        """Whether any recovery sees the text of the data as --template joins it."""
        return bool({*self.recoveries, *self.final_recoveries} - NOT_ON_TEXT)

    @property
    def uses_grpo(self) -> bool:
        return "grpo" in [*self.recoveries, *self.final_recoveries]

    def _check_recovery(self) -> None:
        """Raise ValueError for a sequence that makes no sense, and for settings of grpo out of
        range.
        """
        for flag, names in (
            ("--recovery", self.recoveries),
            ("--final-recovery", self.final_recoveries),
        ):
            if len(set(names)) < len(names) or (
                "none" in names and (len(names) > 1 or flag == "--final-recovery")
            ):
                raise ValueError(
                    f"{flag} {','.join(names)}: name each recovery once, and none only as"
                    " --recovery none"
                )
        if self.score_during_recovery and (
            len(self.recoveries) > 1 or self.recovery in NOT_ON_TEXT
        ):
            raise ValueError(
                "--score-during-recovery takes its statistics from training on text; it needs"
                " --recovery cpt or distill alone"
            )
        if self.grpo_rollouts < 2:
            raise ValueError(
                f"--grpo-rollouts {self.grpo_rollouts} must be at least 2: grpo compares responses"
                " to one problem"
            )
        if self.grpo_learning_rate <= 0 or self.grpo_temperature <= 0 or self.grpo_kl < 0:
            raise ValueError(
                "--grpo-learning-rate and --grpo-temperature must be positive, --grpo-kl at least 0"
            )

    def _check_spending(self) -> None:
        if not (math.isfinite(self.recovered_within) and 0 <= self.anticipate < math.inf):
            raise ValueError(
                f"--recovered-within {self.recovered_within} must be finite, and --anticipate"
                f" {self.anticipate} also at least 0"
            )
        about_training = {
            "--recovery-split until-recovered": self.recovery_split == "until-recovered",
            "--lr-schedule run": self.lr_schedule == "run",
            "--keep-optimizer-state": self.keep_optimizer_state,
            "--anticipate": self.anticipate > 0,
            "--liger": self.liger,
        }
        for flag, is_set in about_training.items():
            if is_set and not set(self.recoveries) - NOT_ON_TEXT:
                raise ValueError(
                    f"{flag} is about training on text; it needs --recovery cpt or distill"
                )
            if (
                is_set
                and flag in ("--keep-optimizer-state", "--anticipate")
                and len(self.recoveries) > 1
            ):
                raise ValueError(
                    f"{flag} spans a round's end and the next one's beginning; it needs --recovery"
                    " cpt or distill alone"
                )
        if self.keep_optimizer_state and self.deepspeed is not None:
            raise ValueError(
                "--keep-optimizer-state is not supported with --deepspeed yet: DeepSpeed keeps the"
                " moments in flat buffers, a part"
                " of them on each rank; leave one of the two out"
            )
        if self.score_during_recovery and (self.score_once or self.anticipate):
            raise ValueError(
                "--score-during-recovery takes statistics from the end of each round; --score-once"
                " needs none after the first"
                " round, and --anticipate needs them before the end; leave it out"
            )
        self._check_distillation()
        self._check_scoring()

    def _check_distillation(self) -> None:
        if not 0 < self.distill_weight <= 1:
            raise ValueError(
                f"--distill-weight {self.distill_weight} is outside (0, 1]; without the teacher"
                " use --recovery cpt"
            )
        if not 0 < self.distill_temperature < math.inf:
            raise ValueError(
                f"--distill-temperature {self.distill_temperature} must be a positive number, for"
                " example 1"
            )
        distills = "distill" in [*self.recoveries, *self.final_recoveries]
        if distills and self.liger:
            raise ValueError(
                "--liger never stores the logits, which --recovery distill compares; leave one of"
                " the two out"
            )
        if self.teacher is not None and not distills:
            raise ValueError(
                f"--teacher is for --recovery distill, and --recovery is {self.recovery}; leave"
                " one of them out"
            )

    def _check_scoring(self) -> None:
        """Raise ValueError for settings of the scoring that exclude one another."""
        if self.score_during_recovery and self.scorer in (
            "reconstruction",
            "gradient",
            "reference",
        ):
            raise ValueError(
                f"--scorer {self.scorer} needs a pass of its own, which --score-during-recovery"
                " would spare; leave that out, or use"
                " --scorer output-change"
            )
        if self.scorer == "reference" and self.protect is None:
            raise ValueError(
                "--scorer reference also looks at English samples; give them with --protect"
            )
        if self.threshold is None:
            return
        if self.scorer in ("random", "reference"):
            raise ValueError(
                f"--threshold has no meaning for --scorer {self.scorer}; choose a scorer that"
                " measures something"
            )
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"--threshold {self.threshold} must be a number that is at least 0")
        if self.neurons_per_round is not None:
            raise ValueError(
                "--threshold decides how many neurons go, and so does --neurons-per-round; give"
                " one of the two"
            )
        if self.keep == 1:
            raise ValueError(
                "--threshold removes neurons and --keep 1 forbids it; lower --keep, the least that"
                " may stay"
            )

    def _check_slicing(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(
                f"--slice-hidden {share} is outside (0, 1); it is the fraction of dimensions that"
                " stay, for example 0.75"
            )
        if self.keep < 1 or self.drop_layers or self.neurons_per_round or (self.rounds or 1) > 1:
            raise ValueError(
                "--slice-hidden is one round that removes nothing else: it does not go with --keep"
                " below 1, --drop-layers,"
                " --neurons-per-round or several --rounds; leave them out"
            )

    def identity(self) -> dict:
        """The settings that decide the result; a run folder only continues under equal ones."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in NOT_PART_OF_THE_RESULT
        }


def deepspeed_file(name: str) -> Path:
    """The JSON file of --deepspeed: a shipped one by name, or a path.

    Raises:
        ValueError: there is no such file.
    """
    choices = ", ".join(sorted(path.stem for path in DEEPSPEED_FOLDER.glob("*.json")))
    for file in (DEEPSPEED_FOLDER / f"{name}.json", Path(name)):
        if file.is_file():
            return file
    raise ValueError(f"--deepspeed {name}: no such file; choose {choices} or give a JSON file")


def check_deepspeed(name: str) -> None:
    """Raise ValueError when --deepspeed names no file, or one that is no JSON object."""
    try:
        settings = json.loads(deepspeed_file(name).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {name} is no JSON file: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--deepspeed {name} holds no JSON object")
