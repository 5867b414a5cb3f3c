"""A quality gate by hand, and runs whose measurements are a script."""

from typing import Any

from ptl_fast.run.quality_gate import Gate


def gate(**values: Any) -> Gate:
    """A gate on a loss of 1, which may rise by a half."""
    return Gate(
        **{
            "task": "nll",
            "metric": "nll",
            "higher_is_better": False,
            "max_drop": 0.5,
            "dense": 1.0,
            **values,
        }
    )


# A run by hand: p passes, f fails, one letter a decision; and what the gate then decides.
SCRIPT = "ffpfppffpff"


DECIDED = "1.1e 1.1b 1.2p 2.1e 2.1p 3.1p 4.1e 4.1b 4.2p 5.1e 5.1s"


def actions(report: dict[str, Any]) -> str:
    """Round, attempt and first letter of each decision."""
    return " ".join(
        f"{made['round']}.{made['attempt']}{made['action'][0]}" for made in report["decisions"]
    )
