"""Evidence for scorers."""

from transformers import PreTrainedModel

from ptl_fast.model.families import find_family
from ptl_fast.scoring.evidence import Evidence
from ptl_fast.scoring.statistics import Statistics


def evidence(statistics: Statistics, model: PreTrainedModel, seed: int = 0) -> Evidence:
    """What a scorer without Gram matrices and samples looks at."""
    return Evidence(statistics=statistics, model=model, family=find_family(model), seed=seed)
