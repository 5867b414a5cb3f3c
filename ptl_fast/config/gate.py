"""The quality gate: what a round must reach."""

import math
from dataclasses import dataclass


@dataclass(kw_only=True)
class GateSettings:
    """The quality gate: what a round must reach."""

    gate: str | None = None
    """The quality gate: TASK:METRIC, one of the results of --eval-tasks (nll:nll, or a label and a
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

    def check(self) -> None:
        """Raise ValueError where --gate lacks something, or a setting is out of range."""
        if (self.gate is None) != (self.max_drop is None):
            raise ValueError(
                "--gate says what must hold and --max-drop how far it may fall; give both or"
                " neither"
            )
        if not 0 <= self.max_extra_recovery < math.inf:
            raise ValueError(
                f"--max-extra-recovery {self.max_extra_recovery} must be a number that is at"
                " least 0"
            )
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ValueError(f"--max-drop {self.max_drop} must be a number that is at least 0")
