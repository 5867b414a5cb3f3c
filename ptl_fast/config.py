"""Every setting of a run. Each field's docstring is its help text on the command line."""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from typing import Literal

# Settings that may differ between a run and its continuation: they do not change what is computed.
NOT_PART_OF_THE_RESULT = frozenset({"output", "overwrite", "debug", "dry_run", "checkpoint_minutes", "keep_rounds"})

MAX_SEED = 2**20  # seeds of rounds are a thousand times larger, and NumPy takes 32 bits


@dataclass(kw_only=True)
class Config:
    """Settings of ``python -m ptl_fast.compress`` and of ``ptl_fast.compress(...)``."""

    model: str | None = None
    """Folder or hub name of the causal language model to compress. Without it, the bundled demo runs."""

    data: str | None = None
    """Reasoning data for scoring and recovery: a .jsonl, .json, .parquet or .txt file, a folder, or a hub data set
    (OWNER/NAME[/FOLDER][:[CONFIG:]SPLIT]). Columns {question, answer}, {query, response}, {problem, solution}, {prompt,
    completion}, {instruction, output}, {messages}, {text} or {content}. Commas separate sources; SOURCE@WEIGHT gives each
    its part of every round's training tokens, without weights they are joined."""

    question_column: str | None = None
    """The column of --data and of nll=FILE that holds the question, where it is not one of the names above."""

    answer_column: str | None = None
    """The column that holds the answer, for example answer where solution would be taken."""

    text_column: str | None = None
    """The column that holds plain text; it goes before question and answer."""

    template: str = "lines"
    """How question and answer are joined, in training and for nll: lines (Question: ..., new line, Answer: ...), paper (as the
    paper's code: nothing between question and 'Answer: '), or a text with {question} that ends with {answer}."""

    streaming: bool = False
    """Read hub data sets and folders without storing them, in an order drawn by the seed, and only until --recovery-tokens are
    there: a sample of the shards that come first. For what is too large for the disk; memory is bounded without it too."""

    protect: str | None = None
    """General text (same formats): neurons that matter most for it are not removed."""

    protect_share: float = 0.5
    """With --protect: the share of each layer's neurons, ranked by their score on that text, that is protected."""

    keep: float = 0.65
    """Fraction of FFN neurons that stay in each layer at the end, in (0, 1]. With 1 and no dropped layers, the model is
    only trained."""

    neurons_per_round: int | None = None
    """FFN neurons removed from each layer in a round; the number of rounds follows."""

    rounds: int | None = None
    """Rounds in which neurons are removed (default: 5, or fewer where --width-multiple allows fewer steps)."""

    drop_layers: int = 0
    """Whole decoder layers to remove."""

    layers_per_round: int = 1
    """Decoder layers removed in one round."""

    order: Literal["neurons-then-layers", "layers-then-neurons", "alternate"] = "neurons-then-layers"
    """Which rounds come first."""

    scorer: str = "activation"
    """Neuron importance: activation (Eq. 4: L2 norm of the activation), output-change (Eq. 2: times the norm of the
    down_proj column), magnitude (L2 norm of the weights), random."""

    layer_scorer: str = "residual"
    """Layer importance: residual (Eq. 5: mean L2 norm of the layer's change of the residual stream), block-influence
    (ShortGPT: 1 - cosine), last (removes the deepest)."""

    width_multiple: int = 128
    """FFN widths are rounded to a multiple of this; 128 suits tensor cores and tensor parallelism."""

    recovery: str = "cpt"
    """How a round recovers: cpt (continual pre-training on the data) or none."""

    recovery_tokens: int | None = None
    """Training tokens over all rounds (default: the data once), and so how many documents are kept in memory. More than there
    is repeats each round's part."""

    recovery_split: Literal["growing", "equal"] = "growing"
    """How the recovery tokens are shared: growing gives each round --recovery-growth times the tokens of the round before."""

    recovery_growth: float = 2.0
    """The factor of --recovery-split growing."""

    learning_rate: float = 1e-5
    """Peak learning rate of each round's recovery (cosine, warm-up 5%)."""

    sequence_length: int = 1024
    """Tokens in a packed sequence."""

    global_batch: int = 32
    """Sequences in an optimizer step, over all ranks and accumulation steps."""

    micro_batch: int = 2
    """Sequences in one forward pass of one rank."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass of recovery: less memory, about a third more time."""

    calibration_tokens: int = 131072
    """Tokens of each round's subset (and of --protect) that score neurons and layers."""

    fused_ffn: bool = False
    """Train on ptl_kernels' fused activation: it keeps one activation less for the backward pass than eager modules do, and
    rounds once where they round twice."""

    score_during_recovery: bool = False
    """Take each next round's statistics from the last --calibration-tokens of a round's recovery (or all of a shorter one),
    so from that round's data, instead of a pass of its own; the first round still needs one. Brings --fused-ffn with it."""

    eval_tasks: list[str] | str = field(default_factory=lambda: ["nll"])
    """What to measure, separated by commas: [LABEL:]TASK[=FILE]. TASK is nll (negative log-likelihood per token of
    answers; without =FILE, of a held-out part of --data), a task shipped here (demo_arithmetic), or any lm-eval task;
    =FILE makes an lm-eval task read that jsonl file instead of the network. The first one leads the tables."""

    eval_limit: int | None = None
    """Examples per evaluation task (default: all)."""

    eval_batch: int = 16
    """Examples in one batch of an evaluation."""

    output: str | None = None
    """Folder of the run (default: runs/demo, or runs/MODEL). The same command continues a run that was interrupted."""

    overwrite: bool = False
    """Delete the run that --output holds and start again."""

    seed: int = 0
    """Seed of data order, subsets and random scores."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type: auto is the checkpoint's own on a GPU and float32 on a CPU. Recovery keeps float32 master weights."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    attn: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention: auto is flash-attention 2 where it is importable and the weights are half precision on a GPU, else SDPA."""

    deepspeed: str | None = None
    """zero2, or a DeepSpeed JSON file; start with the deepspeed or torchrun launcher for several ranks."""

    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside a round's recovery."""

    keep_rounds: int = 1
    """How many of the newest rounds keep their weights on disk."""

    dry_run: bool = False
    """Print what each round would do (width, layers, parameters, FLOPs, tokens) from the config alone, and stop."""

    debug: bool = False
    """Show tracebacks and the libraries' own log messages."""

    preset: str | None = None
    """Settings by name (see ptl_fast/presets); flags override them."""

    def __post_init__(self) -> None:
        self.eval_tasks = self.eval_tasks.split(",") if isinstance(self.eval_tasks, str) else list(self.eval_tasks)
        for name in ("model", "data", "protect", "output", "deepspeed"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else os.fspath(value))

    def check(self) -> None:
        """Raise ValueError for a setting that no model could satisfy."""
        for name, hint in typing.get_type_hints(Config).items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in typing.get_args(hint):
                choices = ", ".join(typing.get_args(hint))
                raise ValueError(f"unknown --{name.replace('_', '-')} {getattr(self, name)}; choose {choices}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"--seed {self.seed} is outside [0, {MAX_SEED})")
        if not 0 < self.keep <= 1:
            raise ValueError(f"--keep {self.keep} is outside (0, 1]; it is the fraction of FFN neurons that stay, for example 0.65")
        if not 0 <= self.protect_share < 1:
            raise ValueError(f"--protect-share {self.protect_share} is outside [0, 1)")
        if self.recovery_growth <= 0 or self.learning_rate <= 0 or self.checkpoint_minutes < 0:
            raise ValueError("--recovery-growth and --learning-rate must be positive, --checkpoint-minutes at least 0")
        at_least_one = (
            "neurons_per_round rounds layers_per_round width_multiple recovery_tokens sequence_length global_batch micro_batch"
        )
        for name in [*at_least_one.split(), "calibration_tokens", "eval_limit", "eval_batch", "keep_rounds"]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.drop_layers < 0:
            raise ValueError(f"--drop-layers {self.drop_layers} must be at least 0")
        if self.model is not None and self.data is None:
            raise ValueError(
                "--data is missing: give a file or hub name with the reasoning data that --model should keep its skill on"
            )

        if self.streaming and self.recovery_tokens is None:
            raise ValueError("--streaming reads only as much as training needs; say how much with --recovery-tokens")
        if self.score_during_recovery and self.recovery == "none":
            raise ValueError("--score-during-recovery takes its statistics from training; it needs --recovery cpt")

    def identity(self) -> dict:
        """The settings that decide the result; a run folder only continues under equal ones."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_PART_OF_THE_RESULT}
