"""Trackers of experiments (--report-to): TensorBoard, Weights & Biases, Trackio.

A training reports its steps through transformers' Trainer, one run of the tracker each. Here is how
a tracker takes what a round came to, which is a run of its own, with the round as its step. Nothing
is imported before it is needed, and only the main rank calls what writes.
"""

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptl_fast.base.atomic_files import write_atomically

NONE = "none"
"""The value of --report-to that reports nothing."""
# where transformers' Trainer puts its runs
PROJECT = "huggingface"


def _nothing(*args: Any) -> None:
    """For trackers that need no such call."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """One value of --report-to; its name is also the Trainer's."""

    package: str
    """What must be installed; pip's name for it is the same."""
    write: Callable[[Path, str, int, Mapping[str, float]], None]
    """Log a round's values: (folder, name of the whole run, round, {name: value})."""
    check: Callable[[], None] = _nothing
    """Raises ValueError if it cannot be written to; called before work begins."""
    prepare: Callable[[Path, str], None] = _nothing
    """Called before the first round or training, with folder and name as for ``write``."""
    end_training: Callable[[], None] = _nothing
    """Called after each training, so that the next one gets a run of its own."""


def _write_tensorboard(folder: Path, run: str, number: int, values: Mapping[str, float]) -> None:
    """One event file a round, which TensorBoard reads in the order of their names; writing a round
    again replaces its file.
    """
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as temporary:
        writer = SummaryWriter(temporary)
        for name, value in values.items():
            writer.add_scalar(name, value, number)
        writer.close()
        (written,) = Path(temporary).glob("events.out.tfevents.*")
        content = written.read_bytes()
    write_atomically(folder / f"events.out.tfevents.{number:04d}", content)


def _check_wandb() -> None:
    import wandb

    is_offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    if not is_offline and not wandb.login(prompt=False):
        raise ValueError(
            "--report-to wandb: not logged in; run `wandb login` first, or set WANDB_MODE=offline"
            " to upload later"
        )


def _prepare_wandb(folder: Path, run: str) -> None:
    """The Trainer's runs stand together, beside the run's other logs, and print nothing between our
    lines.
    """
    os.environ.setdefault("WANDB_RUN_GROUP", run)
    os.environ.setdefault("WANDB_DIR", str(folder))
    os.environ.setdefault("WANDB_SILENT", "true")


def _write_wandb(folder: Path, run: str, number: int, values: Mapping[str, float]) -> None:
    import wandb

    own = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=run,
        name=f"{run}/rounds",
        # wandb continues this run, and drops a round that it has already
        id=f"{run}-rounds",
        resume="allow",
    )
    own.log(dict(values), step=number)
    own.finish()


def _end_wandb_training() -> None:
    import wandb

    wandb.finish()


def _write_trackio(folder: Path, run: str, number: int, values: Mapping[str, float]) -> None:
    import trackio

    # it prints where its dashboard is each time that a run is opened
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project=PROJECT, name=f"{run}/rounds", group=run, resume="allow")
        trackio.log(dict(values), step=number)
        trackio.finish()


TRACKERS = {
    "tensorboard": Tracker(package="tensorboard", write=_write_tensorboard),
    "wandb": Tracker(
        package="wandb",
        write=_write_wandb,
        check=_check_wandb,
        prepare=_prepare_wandb,
        end_training=_end_wandb_training,
    ),
    "trackio": Tracker(package="trackio", write=_write_trackio),
}
"""{value of --report-to: tracker}."""


def check(names: Iterable[str]) -> None:
    """Raise ValueError if a tracker's package is missing, does not work, or nobody is logged in."""
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"--report-to {name}: {package} is not installed; pip install {package}, or leave"
                " it out (--report-to none reports nothing)"
            )
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"--report-to {name}: {package} cannot be imported ({error}); install it again with"
                " what it needs, or leave it out (--report-to none reports nothing)"
            ) from error
        TRACKERS[name].check()
