"""What a run imports only when it comes to it, imported before its process is forked."""

import contextlib
import importlib
import os

import pytest

# accelerate imports DeepSpeed, where it is installed, as soon as anything is trained
LATER = ("deepspeed", "jsonargparse", "docstring_parser", "datasets", "transformers.trainer")

with pytest.MonkeyPatch.context() as patch:
    if "DS_ACCELERATOR" not in os.environ:  # DeepSpeed would look for a GPU, before the fork
        patch.setenv("DS_ACCELERATOR", "cpu")
    for name in LATER:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
