"""The bundled model."""

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from support.models import DEMO_MODEL


@pytest.fixture(scope="session")
def demo_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL).eval()
