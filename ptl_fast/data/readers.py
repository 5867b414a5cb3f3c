"""Read documents from files, folders and data sets of the Hugging Face hub.

Documents are yielded one at a time, so that memory holds only what the caller keeps. The one
exception is .json, which is parsed as a whole.
"""

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ptl_fast.base.console import reason, say
from ptl_fast.config.checking import nearest_file
from ptl_fast.config.numbers import as_share
from ptl_fast.data.columns import document
from ptl_fast.data.documents import EXCHANGE, Document, Form
from ptl_fast.data.file_formats import FILE_READERS, FILE_TYPES, file_rows, file_type, paragraphs

DEMO = "ptl-demo"
# the demo's corpus is generated, so that it needs no download
DEMO_NUM_PROBLEMS, DEMO_SEED = 60_000, 1000
SHUFFLE_BUFFER = 10_000  # rows in the shuffle buffer of a streamed data set
MOST_FILES = 20_000  # in a folder: it would take long only to look at those of / or of a home
SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")  # files of save_to_disk
MOST_WEIGHT = 1e15
SHUFFLE_SHARDS = 64  # of a saved data set that is streamed: they come in a random order
Look = Callable[[dict, str], object]
"""Raises ValueError for a row that does not fit; gets it, and where it stands."""


class Source(NamedTuple):
    """One file, folder or hub data set of a setting such as --data."""

    text: str
    """The entry as the user gave it, without its weight; for messages."""
    name: str
    """Path, OWNER/NAME on the hub, or DEMO."""
    folder: str | None = None
    """load_dataset's ``data_dir``, as the next two are its arguments of the same name."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    @property
    def from_datasets(self) -> bool:
        """Whether the datasets library reads it: a hub data set or a local folder."""
        return self.name != DEMO and not os.path.isfile(self.name)

    @property
    def on_hub(self) -> bool:
        """Whether it is a hub data set."""
        return self.name != DEMO and not os.path.exists(self.name)


class Part(NamedTuple):
    """One component of a data mixture."""

    name: str
    weight: float
    """Fraction of the training tokens; the weights of a corpus sum to 1."""
    documents: Iterable[Document]
    """Read while iterated; some can be iterated only once."""
    shuffled: bool = False
    """Whether the documents come in a random order, so that the first ones are a random sample."""


def open_parts(
    data: str, form: Form, streaming_seed: int | None = None, revision: str | None = None
) -> list[Part]:
    """Parse SOURCE[@WEIGHT][,SOURCE@WEIGHT...] into the parts of a corpus; their weights sum to 1.

    Nothing is read until the documents are iterated. Sources without weights are concatenated, in
    the order given, into one part.

    Args:
        streaming_seed: stream hub data sets and folders, shuffled with this seed, instead of
            downloading them whole; None does not stream.
        revision: branch, tag or commit of the one hub data set among the sources.

    Raises:
        ValueError: an entry is malformed, only some entries have weights, or several sources are to
            be streamed without weights.
    """
    sources, weights = parse(data)
    if revision is not None:
        sources = _of_revision(sources, revision, data)
    parts = [
        Part(
            source.text,
            weight,
            _documents(source, form, streaming_seed),
            streaming_seed is not None and source.from_datasets,
        )
        for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True)
    ]
    if weights or len(parts) == 1:
        total = math.fsum(part.weight for part in parts)
        return [part._replace(weight=part.weight / total) for part in parts]
    # a streamed corpus is read only as far as needed, so the later sources might never be reached
    if any(part.shuffled for part in parts):
        raise ValueError(
            f"--streaming stops early, so {data} needs weights: SOURCE@WEIGHT,SOURCE@WEIGHT"
        )
    return [Part(data, 1.0, itertools.chain.from_iterable(part.documents for part in parts))]


def load_documents(data: str, form: Form | None = None, limit: int | None = None) -> list[Document]:
    """Return the first ``limit`` documents (None: all) of a source, or of several, concatenated.

    Args:
        data: files, folders, hub data sets or the demo's generator, separated by commas.
        form: columns and template; None detects the columns.

    Raises:
        ValueError: a source is missing, empty or malformed (names the line), its columns are not
            known, or several sources have weights.
    """
    parts = open_parts(data, form or Form())
    if len(parts) > 1:
        raise ValueError(
            f"{data}: weights are for --data and --protect; separate sources by commas alone"
        )
    return list(itertools.islice(parts[0].documents, limit))


def hub_names(data: str) -> list[str]:
    """OWNER/NAME of each hub data set among the sources."""
    return [source.name for source in parse(data)[0] if source.on_hub]


def parse(data: str) -> tuple[list[Source], list[float]]:
    """Split a setting into its sources and their weights; the weights are empty if none has one."""
    # a path that exists is taken literally, even if it holds a comma or an @
    entries = [data] if os.path.exists(data) else [entry.strip() for entry in data.split(",")]
    entries = [os.path.expanduser(entry) for entry in entries]
    sources, weights = [], []
    for entry in entries:
        name, at, weight = entry.rpartition("@")
        if at and not os.path.exists(entry):
            weights.append(_weight(weight, entry))
            sources.append(_source(name, data))
        else:
            sources.append(_source(entry, data))
    if weights and len(weights) < len(sources):
        raise ValueError(
            f"{data}: give every source a weight (SOURCE@WEIGHT,SOURCE@WEIGHT), or none"
        )
    return sources, weights


def _of_revision(sources: list[Source], revision: str, data: str) -> list[Source]:
    """The sources with the one hub data set of them at this revision."""
    num_on_hub = sum(source.on_hub for source in sources)
    if num_on_hub != 1:
        raise ValueError(
            f"--data-revision {revision} is for one hub data set, and --data {data} names"
            f" {num_on_hub}; leave it out, or download the data sets and give the files"
        )
    return [source._replace(revision=revision) if source.on_hub else source for source in sources]


def _weight(text: str, entry: str) -> float:
    """Parse the weight of an entry; it must be positive and finite."""
    share = as_share(text)
    try:
        weight = float(text) if share is None else share
    except ValueError:
        weight = math.nan
    # the sum of weights must be a number too
    if not 0 < weight < MOST_WEIGHT:
        raise ValueError(
            f"{entry!r}: {text!r} after the @ is no positive weight, and there is no such file;"
            " give SOURCE@WEIGHT"
        )
    return weight


def _source(entry: str, data: str) -> Source:
    """Parse PATH, FOLDER[:[CONFIG:]SPLIT] or OWNER/NAME[/SUBFOLDER][:[CONFIG:]SPLIT].

    Args:
        data: the whole setting, for messages.
    """
    if entry == DEMO or os.path.isfile(entry):
        return Source(entry, entry)
    # a colon in brackets belongs to a slice of a split, such as train[:1000]
    name, *rest = re.split(r":(?![^\[]*\])", entry)
    if not name or len(rest) > 2:
        raise ValueError(
            f"{entry!r} in {data!r} is no source; give a file, a folder or a hub data set"
            " (NAME:CONFIG:SPLIT)"
        )
    split, config = (
        (rest[-1] if rest else "") or "train",
        (rest[0] if len(rest) == 2 else "") or None,
    )
    if os.path.isdir(name):
        return Source(entry, name, None, config, split)
    # what looks like a path and is none would otherwise be looked up on the hub, with an error
    # that says nothing of files
    path = Path(name)
    if os.path.exists(name) and not os.path.isfile(name):
        raise ValueError(
            f"{entry} is a device or a pipe, and a source is read more than once; give a file"
        )
    if os.path.exists(name):
        raise ValueError(f"{entry}: a file has no configurations or splits; give {name} alone")
    if file_type(path) in FILE_TYPES or name.startswith(("/", ".", "~")):
        hint = f" ({data} is read as a list: commas separate sources)" if "," in data else ""
        raise ValueError(f"no file {entry}{hint}{nearest_file(path)}")
    owner_and_name, folder = "/".join(path.parts[:2]), "/".join(path.parts[2:])
    return Source(entry, owner_and_name, folder or None, config, split)


def _documents(source: Source, form: Form, streaming_seed: int | None) -> Iterator[Document]:
    """Yield a source's documents; raise ValueError if there are none."""
    # look at the first one only: a list of all would hold the source in memory
    documents = _read(source, form, streaming_seed)
    first = next(documents, None)
    if first is None:
        raise ValueError(
            f"{source.text} holds no documents; give a file with at least one non-empty example"
        )
    yield first
    yield from documents


def _read(source: Source, form: Form, streaming_seed: int | None) -> Iterator[Document]:
    """Yield a source's documents with the reader that its type calls for."""
    path = Path(source.name)
    if source.name == DEMO:
        from ptl_fast.demo.problems import generate

        for problem in generate(DEMO_NUM_PROBLEMS, DEMO_SEED, "training"):
            chat = EXCHANGE if form.chats is not None and form.chats.pairs else None
            yield Document(problem["question"], problem["answer"], form.template, chat=chat)
    elif source.from_datasets:
        yield from _from_rows(source.text, dataset_rows(source, streaming_seed), form)
    elif file_type(path) == ".txt":
        yield from (Document("", text, form.template) for text in paragraphs(path))
    else:
        yield from _from_rows(source.text, file_rows(path), form)


def looking(columns: Form) -> Look:
    """A look that takes what a document can be made of."""
    return lambda row, where: document(row, where, columns)


def look_at_first(file: Path, name: str, look: Look) -> None:
    """Read a file's first row alone; ``name`` is what the file is called in messages.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    first = next(file_rows(file), None)
    if first is None:
        raise ValueError(f"{name} holds no rows; give a file with at least one example")
    look(first[1], f"{name} line {first[0]}")


def _from_rows(name: str, rows: Iterable[tuple[int, dict]], form: Form) -> Iterator[Document]:
    """Turn (number, row) into documents; skip and count rows with an empty answer or text."""
    num_empty = 0
    try:
        for number, row in rows:
            found = document(row, f"{name} line {number}", form)
            if found.answer:
                yield found
            else:
                num_empty += 1
    finally:  # reached too when the caller stops before the end
        if num_empty:
            say(f"{name}: {num_empty:,} rows with an empty answer or text were left out")


def dataset_rows(source: Source, streaming_seed: int | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (number from 1, row) of a hub data set or a folder, read by the datasets library.

    Args:
        streaming_seed: stream the rows, with the shards and a buffer of SHUFFLE_BUFFER rows
            shuffled by this seed; None downloads the data set and memory-maps it.

    Raises:
        ValueError: there is no such data set, or it cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    check_folder(source)
    streaming = streaming_seed is not None
    try:
        rows: Any = _saved_to_disk(source)
        if rows is None:
            rows = datasets.load_dataset(
                source.name,
                source.config,
                data_dir=source.folder,
                split=source.split,
                streaming=streaming,
                revision=source.revision,
            )
        elif streaming:
            rows = rows.to_iterable_dataset(num_shards=min(SHUFFLE_SHARDS, len(rows)))
        if streaming:
            rows = rows.shuffle(seed=streaming_seed, buffer_size=SHUFFLE_BUFFER)
        yield from enumerate(rows, start=1)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        if os.path.exists(source.name):
            raise ValueError(f"{source.text} cannot be read: {reason(error)}") from error
        raise ValueError(
            f"no file {source.text}, and no such data set on the hub or in its cache"
            f" ({reason(error)})"
        ) from error


def is_local(source: str) -> bool:
    """Whether FILE or FOLDER[:[CONFIG:]SPLIT] exists here."""
    return os.path.exists(source) or os.path.isdir(source.partition(":")[0])


def local_rows(source: str, split: str) -> Iterator[tuple[int, dict]]:
    """Yield (number from 1, row) of a file of any type, or of a folder.

    Args:
        split: that of a folder with several, where ``source`` names none.

    Raises:
        ValueError: it cannot be read.
    """
    if os.path.isfile(source):
        yield from file_rows(Path(source))
        return
    yield from dataset_rows(local_source(source, split))


def local_source(source: str, split: str) -> Source:
    """A file, or a folder with the split where it names none; ValueError for devices and pipes."""
    parsed = _source(source, source)
    named = ":" in source.removeprefix(parsed.name)
    return parsed if named else parsed._replace(split=split)


def check_folder(source: Source) -> None:
    """Raise ValueError for a folder of tables of several types: datasets would read those of one
    type, and say nothing of the others.
    """
    folder = Path(source.name)
    if (
        folder.is_dir()
        and len(list(itertools.islice(folder.rglob("*"), MOST_FILES + 1))) > MOST_FILES
    ):
        raise ValueError(
            f"{source.text} holds more than {MOST_FILES:,} files and folders; name a folder of data"
            " alone"
        )
    # a README may say which files belong to which configuration
    if source.config is not None or not folder.is_dir() or (folder / "README.md").exists():
        return
    # what lies beside tables in .json describes them, and hidden folders are caches
    files = [file for file in folder.rglob("[!.]*") if file.is_file()]
    visible = [file for file in files if "/." not in f"/{file.relative_to(folder)}"]
    found = set(map(file_type, visible)) & (FILE_READERS.keys() - {".json"})
    if len(found) > 1:
        raise ValueError(
            f"{source.text} holds {', '.join(sorted(found))} files; name the files of --data one by"
            " one, with commas between them"
        )


def _saved_to_disk(source: Source) -> Any:
    """The data set of a folder that ``save_to_disk`` wrote, or None for any other source.

    Raises:
        ValueError: the folder holds several splits, and not the one that was asked for.
    """
    import datasets

    folder = Path(source.name)
    if not any((folder / name).is_file() for name in SAVED_BY_DATASETS):
        return None
    saved = datasets.load_from_disk(source.name)
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if source.split not in saved:
        raise ValueError(
            f"{source.text} has the splits {', '.join(saved)}; name one: {source.name}:SPLIT"
        )
    return saved[source.split]
