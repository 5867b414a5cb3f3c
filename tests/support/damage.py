"""Damage to the files of a run: a flipped bit, half of a file, no file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ptl_fast import compress
from ptl_fast.recovery import trainer
from support.runs import Killed


def flip(file: Path) -> None:
    """Flip a bit in the middle of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def delete(file: Path) -> None:
    file.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "halve": halve, "delete": delete}


def run_until(round_name: str, step: int, settings: dict, output: Path) -> None:
    """Run until a step of a round's recovery is about to begin."""
    begin = trainer.StopAtNan.on_step_begin

    def die(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        here = Path(args.output_dir).parent.name  # type: ignore[attr-defined]
        if here == round_name and state.global_step == step:  # type: ignore[attr-defined]
            raise Killed
        begin(self, args, state, control, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.StopAtNan, "on_step_begin", die)
        with pytest.raises(Killed):
            compress(**settings, output=output)


def files_of(folder: Path) -> list[str]:
    """The names of all files of a run, but the lock."""
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name != ".lock")
