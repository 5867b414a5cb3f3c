"""Checks of names and files that take less than a second, before torch and transformers are
imported, which takes several: a missing file or a misspelt task is told at once.

What is on the hub, and whether all of a file can be read, shows later.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ptl_fast.base import trackers
from ptl_fast.config.checking import flag, nearest, nearest_file
from ptl_fast.config.presets import shipped_config
from ptl_fast.data import first_rows, readers
from ptl_fast.data.documents import Form, make_template
from ptl_fast.evaluation import task_names
from ptl_fast.evaluation.task_names import EvalTask
from ptl_fast.run import goals, quality_gate

if TYPE_CHECKING:
    from ptl_fast.config.config import Config

HUB_SECONDS = 2.0  # that the hub has for an answer
# of the hub: at most one slash, and neither a path nor hidden
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check(config: "Config", looks_at_data: bool = True) -> None:
    """Raise ValueError for a name that no task has, or a file that is missing or malformed.

    A dry run asks nothing of the hub's data sets and needs no permission to execute code; files
    that it is given are looked at as a run looks at them.

    Args:
        looks_at_data: whether the files of data and tasks must be there.
    """
    _check_device(config.model.device)
    check_model("model", config.model.model)
    check_model("teacher", config.distill.teacher)
    goals.peaks(config.goal)
    make_template(config.data.template)
    entries = task_names.check_names(config.evaluation.tasks)
    if config.gate.gate is not None:
        quality_gate.parse_gate(config.gate.gate, [task.label for task in entries])
    if not config.run.dry_run:
        task_names.check(config.evaluation.tasks, config.evaluation.allow_code_execution)
    if looks_at_data:
        _check_data(config, entries)
    if config.run.dry_run:
        return
    trackers.check(config.trainer.trackers)
    for source in (config.data.data, config.data.protect):
        for name in readers.hub_names(source) if source is not None else []:
            _check_data_set(name)


def _check_data(config: "Config", entries: list[EvalTask]) -> None:
    """Raise ValueError if a file of data or a task is missing, or its first row is unfit."""
    data = config.data
    _check_output(config, [data.data, data.protect, *(task.file for task in entries)])
    form = Form(data.question_column, data.answer_column, data.text_column)
    if data.data is not None:
        first_rows.check(data.data, form)
    if data.protect is not None:
        first_rows.check(data.protect)
    for task in entries:
        if task.file is not None:
            task_names.check_file(task, form)


def _check_output(config: "Config", given: list[str | None]) -> None:
    """Raise ValueError if the run's folder lies in a folder that is read as data: what a run writes
    there would be data of the next one, and of the same command when it goes on.
    """
    if config.run.output is None:
        return
    output = Path(config.run.output).resolve()
    for each in filter(None, given):
        for source in readers.parse(each)[0]:
            folder = Path(source.name).resolve()
            if source.from_datasets and folder.is_dir() and output.is_relative_to(folder):
                raise ValueError(
                    f"--output {config.run.output} lies in {source.name}, which is read as data;"
                    " give a folder beside it, or a narrower --data"
                )


def check_model(setting: str, name: str | None) -> None:
    """Raise ValueError if a model is neither a folder nor, by its form, a name on the hub.

    Args:
        setting: model or teacher.
    """
    if name is None or Path(name).is_dir() or shipped_config(name) is not None:
        return
    path = Path(name)
    if path.exists():
        raise ValueError(f"{flag(setting)} {name} is a file; give the model's folder")
    hint = nearest_file(path)
    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{flag(setting)} {name} cannot be loaded: no such folder{hint}")
    if not _may_be_on_hub(name):
        raise ValueError(
            f"{flag(setting)} {name} cannot be loaded: no such folder, and not found on the hub or"
            f" in its cache{hint}"
        )


def _check_data_set(name: str) -> None:
    """Raise ValueError if there is no such data set on the hub, nor anything like it in the cache
    of the datasets library, which has names of its own for what it has prepared.
    """
    if _may_be_on_hub(name, "dataset"):
        return
    from huggingface_hub import constants

    default = os.path.join(constants.HF_HOME, "datasets")
    cache = Path(os.environ.get("HF_DATASETS_CACHE", default))
    own = {_letters(name), _letters(name.rpartition("/")[2])}
    if not cache.is_dir() or not any(_letters(each.name) in own for each in cache.iterdir()):
        raise ValueError(
            f"no file {name}, and no such data set on the hub or in its cache"
            f"{nearest_file(Path(name))}"
        )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _may_be_on_hub(name: str, kind: str = "model") -> bool:
    """Whether the hub's cache holds something of a repository, or the hub does not deny it.

    False too where the hub cannot be reached at all: loading would try for a minute, in vain.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type=kind)
    if (Path(constants.HF_HUB_CACHE) / folder).is_dir():
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
    except errors.GatedRepoError:
        return True
    except errors.RepositoryNotFoundError:
        return False
    except Exception as error:  # httpx2's or, in older versions, requests' own types
        kind = type(error).__name__
        return "Connect" not in kind or "Timeout" in kind
    return True


def _check_device(name: str) -> None:
    """Raise ValueError for a --device that no machine has; which ones there are, torch says."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        hint = nearest(name, ("auto", "cpu", "cuda"))
        raise ValueError(f"unknown --device {name}; choose auto, cpu, cuda or cuda:N{hint}")
