"""``import ptl_fast.flap`` is what the card of a model with FLAP's bias tells people to write."""

import subprocess
import sys

import ptl_fast.flap
from ptl_fast.baselines import flap

REGISTERED = """
import transformers, ptl_fast.flap
print(transformers.AutoConfig.for_model("flap_qwen2").model_type)
"""


def test_the_import_teaches_transformers_the_model_type() -> None:
    result = subprocess.run(
        [sys.executable, "-c", REGISTERED], capture_output=True, text=True, check=True
    )
    assert result.stdout == "flap_qwen2\n"


def test_it_offers_the_functions_of_the_baseline() -> None:
    assert ptl_fast.flap.add_bias_ is flap.add_bias_
