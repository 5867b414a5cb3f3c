"""``import ptl_fast.slicegpt`` is what a model card of a sliced model tells people to write."""

import subprocess
import sys

import ptl_fast.slicegpt
from ptl_fast.baselines import slicegpt

REGISTERED = """
import transformers, ptl_fast.slicegpt
print(transformers.AutoConfig.for_model("slicegpt_llama").model_type)
"""


def test_the_import_teaches_transformers_the_model_type() -> None:
    result = subprocess.run(
        [sys.executable, "-c", REGISTERED], capture_output=True, text=True, check=True
    )
    assert result.stdout == "slicegpt_llama\n"


def test_the_old_path_has_the_same_functions() -> None:
    assert ptl_fast.slicegpt.sliced_config is slicegpt.sliced_config
