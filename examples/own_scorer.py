"""A scorer of your own in a whole run.

python examples/own_scorer.py [OUTPUT]
"""

import sys

import torch

from ptl_fast import Evidence, compress, register_scorer


@register_scorer("mean-size", needs={"sums"})
def mean_size(evidence: Evidence) -> torch.Tensor:
    """score[l, i] = mean over tokens of |a[t, i]|; what scores lowest goes first."""
    statistics = evidence.statistics
    return statistics.absolute_LI / statistics.num_tokens


def main(output: str, **settings: object) -> None:
    settings = {"preset": "demo", "recovery": "none", **settings}
    report = compress(**settings, scorer="mean-size", output=output)
    task = next(iter(report["final"]["eval"]))
    print(f"{report['final']['num_parameters']:,} parameters, {report['final']['eval'][task]}")


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "runs/own-scorer")
