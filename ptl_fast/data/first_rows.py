"""A first look at data, which takes well under a second a file: does it exist, can it be read, and
does its first row hold what is asked for? Nothing on the hub is asked.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from ptl_fast.base.console import reason
from ptl_fast.data import readers
from ptl_fast.data.documents import Form
from ptl_fast.data.file_formats import FILE_READERS, FILE_TYPES, file_type, open_text
from ptl_fast.data.readers import DEMO, Look, Source

QUICKLY_PARSED = 2**24  # bytes of JSON: it is parsed as a whole, which takes long
FIRST_TEXT = 2**16  # characters of a text file
# What the datasets library reads in a folder, beside the types of files that are read here.
OTHER_TYPES = {".arrow", ".geoparquet", ".ndjson", ".pq", ".tar", ".xml", ".zip"}


def check(data: str, form: Form | None = None) -> None:
    """Look at each source of a setting such as --data.

    Raises:
        ValueError: one is missing, empty, malformed, holds no data, or its columns are not known.
    """
    look = readers.looking(form or Form())
    for source in readers.parse(data)[0]:
        check_source(source, look)


def check_local(name: str, look: Look) -> None:
    """Look at the file or folder of an evaluation task, if it is no hub data set.

    Raises:
        ValueError: as ``check`` does.
    """
    if readers.is_local(name):
        check_source(readers.local_source(name, "test"), look)


def check_source(source: Source, look: Look) -> None:
    """Look at a source's first row, in a folder that of one of its files.

    Raises:
        ValueError: as ``check`` does.
    """
    if source.name == DEMO or source.on_hub:
        return
    file = _of_folder(source) if source.from_datasets else Path(source.name)
    if file is None:
        return
    try:
        _check_file(file, source, look)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {reason(error)}") from error


def _check_file(file: Path, source: Source, look: Look) -> None:
    name = source.text if file == Path(source.name) else str(file)
    if not file.stat().st_size:
        raise ValueError(f"{name} is empty; give a file with at least one example")
    if file_type(file) == ".txt":
        with open_text(file) as text:
            text.readline(FIRST_TEXT)
        return
    if file_type(file) == ".json" and file.stat().st_size > QUICKLY_PARSED:
        return
    readers.look_at_first(file, name, look)


def _of_folder(source: Source) -> Path | None:
    """The file of a folder to look at; None where only the datasets library knows which one.

    Raises:
        ValueError: the folder is too large, of several types, or holds no data.
    """
    readers.check_folder(source)
    folder = Path(source.name)
    if any((folder / name).is_file() for name in readers.SAVED_BY_DATASETS):
        return None
    files = sorted(_visible(folder))
    known = {*FILE_TYPES, *OTHER_TYPES}
    if not any(file_type(file) in known for file in files):
        raise ValueError(
            f"{source.text} holds no data: no file of type {', '.join(FILE_TYPES)} or another that"
            " the datasets library reads; give a file, or a folder with such files"
        )
    # a README may say which files are of which split, and a configuration have files of its own
    if source.config is not None or (folder / "README.md").exists():
        return None
    tables = [file for file in files if file_type(file) in FILE_READERS.keys() - {".json"}]
    named = [file for file in tables if source.split in str(file.relative_to(folder))]
    return next(iter(named or tables), None)


def _visible(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, without hidden ones; at most MOST_FILES."""
    for file in itertools.islice(folder.rglob("[!.]*"), readers.MOST_FILES):
        if "/." not in f"/{file.relative_to(folder)}" and file.is_file():
            yield file
