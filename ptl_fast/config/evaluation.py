"""What is measured after each round."""

import math
from dataclasses import dataclass, field

from ptl_fast.config.checking import FREE, ROUNDING, check_at_least_one

NONE = "none"
# of several answers to a problem: usual for pass@k of small k
SAMPLING_TEMPERATURE = 0.6


@dataclass(kw_only=True)
class EvaluationSettings:
    """What is measured after each round."""

    eval_tasks: list[str] | str = field(default_factory=lambda: ["nll"])
    """What to measure, separated by commas: [LABEL:]TASK[=FILE]. TASK is nll (negative
    log-likelihood per token of answers; without =FILE, of a held-out part of --data), a task
    shipped here (demo_arithmetic, ptl_gsm8k, ptl_minerva_math, ptl_math500, ptl_mbpp; in the
    model's chat template and without examples ptl_gsm8k_chat, ptl_mbpp_chat), or any lm-eval task.
    =FILE makes a task read that file or folder, of any type that --data takes, instead of the hub;
    the ptl_ tasks also take a hub name there. Rows with an empty answer are left out, with a count.
    The first one leads the tables. none measures nothing: no round is then compared with pruning
    alone (--undo-recovery), and --gate has nothing to look at."""

    allow_code_execution: bool = field(default=False, metadata=FREE)
    """Allow ptl_mbpp and ptl_mbpp_chat to run the code that the model writes: in a child process
    without network, with limits on time, memory and files."""

    eval_limit: int | None = None
    """Examples per evaluation task (default: all)."""

    eval_batch: int = field(default=16, metadata=ROUNDING)
    """Examples in one batch of an evaluation. Logits of nll exist a part at a time, whatever it is;
    of lm-eval's log-likelihoods, batches are as small as their logits need to be to fit into an
    eighth of the memory."""

    eval_max_tokens: int = 1024
    """Tokens after which an answer to a chat task is cut off."""

    eval_samples: int = 1
    """Answers to each problem of a chat task: with N of them it reports pass@1, pass@2, pass@4, ...
    up to pass@N, the chance that at least one of so many answers is right."""

    eval_temperature: float | None = None
    """Temperature of the answers to chat tasks (default: 0, the likeliest token each time, and 0.6
    with several --eval-samples)."""

    def __post_init__(self) -> None:
        given = self.eval_tasks
        self.eval_tasks = given.split(",") if isinstance(given, str) else list(given)

    def check(self) -> None:
        """Raise ValueError where nothing would be measured."""
        check_at_least_one(self, ["eval_limit", "eval_batch", "eval_max_tokens", "eval_samples"])
        if not self.eval_tasks:
            raise ValueError(
                "--eval-tasks names no task; name at least one, such as nll: the tables are about"
                " it; or none, to measure nothing"
            )
        if NONE in self.eval_tasks[1:] or (self.eval_tasks[0] == NONE and self.tasks):
            raise ValueError(
                f"--eval-tasks {','.join(self.eval_tasks)}: none stands alone, and measures nothing"
            )
        temperature = self.eval_temperature
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ValueError(
                f"--eval-temperature {temperature} must be a number that is at least 0"
            )
        if self.eval_samples > 1 and temperature == 0:
            raise ValueError(
                f"--eval-samples {self.eval_samples} would be the same answer each time at"
                " --eval-temperature 0; raise it"
            )

    @property
    def tasks(self) -> list[str]:
        """The entries of --eval-tasks; empty where nothing is measured."""
        return [] if self.eval_tasks == [NONE] else list(self.eval_tasks)

    @property
    def sampling_temperature(self) -> float:
        """--eval-temperature, or its default."""
        if self.eval_temperature is not None:
            return self.eval_temperature
        return 0.0 if self.eval_samples == 1 else SAMPLING_TEMPERATURE
