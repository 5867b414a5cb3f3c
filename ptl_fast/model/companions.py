"""The files beside a model's weights: its tokenizer, processors, chat template and licence, as its
makers wrote them. A tokenizer that was loaded and saved again is another file: transformers leaves
out what it does not read, such as the SentencePiece model that other programs want.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer
from transformers.utils import cached_file

from ptl_fast.base import json_text
from ptl_fast.model import loading

if TYPE_CHECKING:
    from ptl_fast.config.model import ModelSettings

# What is copied, by name; folders are left out but for the templates'.
TOKENIZER = re.compile(
    r"tokenizer[\w.-]*\.(json|model|py)|tokenization_\w+\.py|(special_tokens_map|added_tokens)\.json"
    r"|vocab\.(json|txt|bpe)|merges\.txt|tekken\.json|[\w.-]+\.tiktoken"
    r"|(sentencepiece[\w.-]*|spiece|spm)\.model"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[\w.-]+\.jinja"
)
# What makes numbers of the images or sound that a model of several parts takes beside text.
PROCESSOR = re.compile(r"(\w+_)?(pre)?processor_config\.json")
LICENCE = re.compile(r"(licen[sc]e|notice|copying|copyright|use_policy)\b[\w .-]*", re.IGNORECASE)
# What a model computes and answers, beside its weights.
SETTINGS = ("config.json", "generation_config.json")
# What is fetched for a model of the hub, beside what loading it has fetched.
ON_HUB = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)


def write(name: str, folder: Path, settings: "ModelSettings | None" = None) -> None:
    """Put a model's tokenizer and processor files, chat template and licence into a folder.

    They are unchanged. A tokenizer that is converted while it is loaded is saved in its converted
    form as well.

    Args:
        name: of the model: a folder, a name on the hub, or ``ptl-demo``.
        settings: its revision on the hub, and whether its adapter was merged.
    """
    source = source_folder(name, settings)
    if source is None or not (source / "tokenizer.json").is_file():
        loading.load_tokenizer(name, settings=settings).save_pretrained(folder)
    if source is None:
        return
    for file in _files(source):
        target = folder / file
        target.parent.mkdir(exist_ok=True)
        # the hub's cache has symbolic links, whose targets are copied
        shutil.copyfile(source / file, target)


def write_processors(name: str | None, folder: Path) -> None:
    """Put the processors of a model alone into a folder, where its own files are at hand."""
    source = source_folder(name) if name else None
    if source is None:
        return
    for file in _files(source):
        if PROCESSOR.fullmatch(file.as_posix()):
            shutil.copyfile(source / file, folder / file)


def source_folder(name: str, settings: "ModelSettings | None" = None) -> Path | None:
    """The folder with a model's own files, in the hub's cache for one of the hub; None without."""
    revision = settings.revision if settings is not None else None
    return loading.local_folder(name) or _snapshot(name, revision)


def difference(name: str, folder: Path, settings: "ModelSettings | None" = None) -> str | None:
    """Say how the tokenizer in a folder differs from a model's own; None if it does not."""
    own = loading.load_tokenizer(name, settings=settings)
    try:
        other = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a bad tokenizer
        return f"its tokenizer cannot be loaded ({type(error).__name__})"
    if own.get_vocab() != other.get_vocab():
        return "its tokenizer has another vocabulary"
    return "its tokenizer has another chat template" if _template(own) != _template(other) else None


def fingerprint(name: str, settings: "ModelSettings") -> dict[str, str]:
    """{file: hash} of a folder's configuration and tokenizer: a run is not resumed on others.

    Empty for a model of the hub, whose commit says it all (``checkpoint.weights_fingerprint``).
    """
    found: dict[str, str] = {}
    # an adapter's folder may hold the tokenizer, and name that of the weights
    for folder in (loading.weights_folder(name, settings), loading.local_folder(name)):
        if folder is None:
            continue
        files = [file for file in _files(folder) if not LICENCE.fullmatch(file.as_posix())]
        for file in [*files, *map(Path, SETTINGS)]:
            if (folder / file).is_file():
                content = _without_traces_of_use((folder / file).read_bytes())
                found[file.as_posix()] = hashlib.sha256(content).hexdigest()[:16]
    return found


# What is saved of how a tokenizer was last called, and of the library that wrote a config.
TRACES_OF_USE = ("transformers_version", "truncation", "padding")


def _without_traces_of_use(content: bytes) -> bytes:
    """A JSON object without what says nothing of a result; anything else as it is."""
    try:
        values = json_text.loads(content)
    except ValueError:
        return content
    if not isinstance(values, dict) or not any(each in values for each in TRACES_OF_USE):
        return content
    values = {name: each for name, each in values.items() if name not in TRACES_OF_USE}
    return json.dumps(values, sort_keys=True).encode()


def _files(source: Path) -> list[Path]:
    """The files to copy, relative to their folder."""
    found = [file.relative_to(source) for file in [*source.glob("*"), *source.glob("*/*.jinja")]]
    return sorted(
        file
        for file in found
        if (source / file).is_file()
        and any(kind.fullmatch(file.as_posix()) for kind in (TOKENIZER, PROCESSOR, LICENCE))
    )


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that has a model's files; None without one."""
    found = [
        cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        for file in ON_HUB
    ]
    folders = [Path(file).parent for file in found if file is not None]
    return folders[0] if folders else None


def _template(tokenizer: object) -> object:
    return getattr(tokenizer, "chat_template", None)
