"""What is measured after each round."""

from dataclasses import dataclass, field

from ptl_fast.config.checking import FREE, ROUNDING, check_at_least_one


@dataclass(kw_only=True)
class EvaluationSettings:
    """What is measured after each round."""

    eval_tasks: list[str] | str = field(default_factory=lambda: ["nll"])
    """What to measure, separated by commas: [LABEL:]TASK[=FILE]. TASK is nll (negative
    log-likelihood per token of answers; without =FILE, of a held-out part of --data), a task
    shipped here (demo_arithmetic, ptl_gsm8k, ptl_minerva_math, ptl_math500, ptl_mbpp), or any
    lm-eval task. =FILE makes a task read that jsonl file instead of the hub; the ptl_ tasks also
    take a hub name there. The first one leads the tables."""

    allow_code_execution: bool = field(default=False, metadata=FREE)
    """Allow ptl_mbpp to run the code that the model writes: in a child process without network,
    with limits on time, memory and files."""

    eval_limit: int | None = None
    """Examples per evaluation task (default: all)."""

    eval_batch: int = field(default=16, metadata=ROUNDING)
    """Examples in one batch of an evaluation."""

    def __post_init__(self) -> None:
        given = self.eval_tasks
        self.eval_tasks = given.split(",") if isinstance(given, str) else list(given)

    def check(self) -> None:
        """Raise ValueError where nothing would be measured."""
        check_at_least_one(self, ["eval_limit", "eval_batch"])
        if not self.eval_tasks:
            raise ValueError(
                "--eval-tasks names no task; name at least one, such as nll: the tables are about"
                " it"
            )
