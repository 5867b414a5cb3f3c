"""Own traces: a model's answers to the questions of a corpus, kept on disk.

Documents are asked in their order, PART of them at a time, until the answers that are kept hold
enough tokens. Each part is a file of JSON lines that is written atomically, so an interrupted run
makes only the missing ones when it resumes. Ranks divide the parts among themselves and read all of
them: they need the same file system. Which parts count follows from their content alone, so any
number of ranks ends with the same traces (to the rounding of one answer's logits).

A trace becomes a document again whose prompt is what the model was asked, to the letter: in the
tokenizer's chat template if there is one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ptl_fast.base import distributed, json_text
from ptl_fast.base.progress import Steps
from ptl_fast.base.run_files import TraceFolder
from ptl_fast.base.stored import write_here
from ptl_fast.data.answers import BOXED_REQUEST, checkable_answer
from ptl_fast.data.chats import prompt_messages
from ptl_fast.data.documents import Document
from ptl_fast.data.generation import Answer, Sampling, answer_batch, by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PART = 64  # documents in a file: what an interruption loses at most
TESTS_REQUEST = "Your code should pass these tests:\n\n"
AUTO = "auto"
# the prompt stands for the question: it holds the template already
AS_ASKED = "{question}{answer}"
PROBE = "forty-two"  # an answer that no chat template changes

Judge = Callable[[Document, str], bool | None]
"""Whether an answer's text is right for a document; None if that cannot be told."""


class Trace(NamedTuple):
    """What a model said to one document's question. Plain text stands for itself."""

    question: str
    """Empty for plain text."""
    answer: str
    """The data's."""
    own: str
    """The model's answer as text, without its end; of plain text the text."""
    prompt_tokens: int
    tokens: int
    """Of the model's answer, without its end."""
    finished: bool
    """Whether the model ended it; False if it was cut off, or if there was no room for one."""
    right: bool | None
    """Whether it is right; None if that cannot be told."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt, answer and end: what a document of it has."""
        return self.prompt_tokens + self.tokens + 1


@dataclass(frozen=True, kw_only=True)
class Form:
    """How questions are put to a model, and what its answers look like as documents."""

    tokenizer: "PreTrainedTokenizerBase"
    request: str = AUTO
    """Text below each question; AUTO is BOXED_REQUEST in a chat where the document's answer marks
    a final one, and nothing elsewhere.
    """

    @property
    def is_chat(self) -> bool:
        """Whether questions are asked in the tokenizer's chat template."""
        return self.tokenizer.chat_template is not None

    def prompt(self, document: Document) -> str:
        """The text that the model continues. Tokenized, it has one beginning-of-sequence token."""
        request = self._request(document)
        if not self.is_chat:
            # most tokenizers put the space into the answer's first token: it must not be given
            question = "\n".join([document.question, *request])
            return document._replace(question=question).prompt.rstrip(" ")
        turns = _asked(document, request)
        tools = list(document.chat.tools) if document.chat is not None else []
        rendered = self._rendered(turns, tools=tools or None, add_generation_prompt=True)
        # templates write the token that such tokenizers add to every text
        begin = self.tokenizer.bos_token_id
        if begin is not None and self.ids("")[:1] == [begin]:
            rendered = rendered.removeprefix(str(self.tokenizer.bos_token))
        return rendered

    def document(self, document: Document, trace: Trace) -> Document:
        """The document that a trace becomes; plain text stays what it is."""
        if not document.question:
            return document
        return Document(self.prompt(document), trace.own + self.end_of_turn, AS_ASKED)

    @property
    def end_of_turn(self) -> str:
        """What the chat template puts between an answer and the end-of-sequence token, such as
        gemma's <end_of_turn>; empty for most, whose turns end with that token itself.
        """
        if not self.is_chat:
            return ""
        turns = [_turn("user", PROBE), _turn("assistant", PROBE)]
        end = self._rendered(turns).rpartition(PROBE)[2].strip()
        eos = str(self.tokenizer.eos_token)
        return "" if end.startswith(eos) else end.removesuffix(eos).strip()

    def prompt_ids(self, document: Document) -> list[int]:
        """The prompt's token ids."""
        ids = self.ids(self.prompt(document))
        # some tokenizers end every text, and nothing would follow the end
        return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids

    def ids(self, text: str) -> list[int]:
        """A text's token ids, as the tokenizer makes them."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _request(self, document: Document) -> list[str]:
        """What goes below the question, line by line."""
        request = self.request
        if request == AUTO:
            marked = self.is_chat and not document.tests and checkable_answer(document.answer)
            request = BOXED_REQUEST if marked else ""
        tests = f"{TESTS_REQUEST}{document.tests}" if document.tests else ""
        return [text for text in (request, tests) if text]

    def _rendered(self, turns: list[dict[str, Any]], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **options))


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """A model that answers questions, and who judges its answers."""

    model: "PreTrainedModel"
    form: Form
    sampling: Sampling
    batch_size: int
    judge: Judge

    def answer(
        self, documents: Sequence[Document], seed: int, done: Callable[[list[Trace]], None]
    ) -> list[Trace]:
        """The documents' traces, in their order. Calls ``done`` with those of each batch.

        Args:
            seed: of the sampling; each batch has its own random numbers.
        """
        traces: dict[int, Trace] = {}
        asked = []
        prompts = [self._prompt(document) for document in documents]
        for index, (document, prompt) in enumerate(zip(documents, prompts, strict=True)):
            if document.question and self._has_room(prompt):
                asked.append(index)
            else:
                traces[index] = _unasked(document, len(prompt))
        for batch in by_length([prompts[index] for index in asked], self.batch_size):
            chosen = [asked[place] for place in batch]
            sampling = dataclasses.replace(self.sampling, seed=seed + chosen[0])
            answers = answer_batch(
                self.model, self.form.tokenizer, [prompts[index] for index in chosen], sampling
            )
            for index, answer in zip(chosen, answers, strict=True):
                traces[index] = self._trace(documents[index], len(prompts[index]), answer)
            done([traces[index] for index in chosen])
        return [traces[index] for index in range(len(documents))]

    def _prompt(self, document: Document) -> list[int]:
        """Of plain text its own tokens: they are only counted."""
        is_text = not document.question
        return self.form.ids(document.answer) if is_text else self.form.prompt_ids(document)

    def _has_room(self, prompt: Sequence[int]) -> bool:
        """Whether an answer fits behind the prompt into the positions that the model knows."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return limit is None or len(prompt) + self.sampling.max_new_tokens <= limit

    def _trace(self, document: Document, prompt_tokens: int, answer: Answer) -> Trace:
        # special tokens inside an answer, such as those around reasoning, belong to it
        own = str(
            self.form.tokenizer.decode(
                answer.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        right = self.judge(document, own) if answer.finished else False
        return Trace(
            document.question,
            document.answer,
            own,
            prompt_tokens,
            len(answer.tokens),
            answer.finished,
            right,
        )


def write_part(folder: TraceFolder, source: int, number: int, traces: Sequence[Trace]) -> None:
    """Write a part atomically, on whichever rank calls this."""
    lines = [json.dumps(trace._asdict(), ensure_ascii=False) + "\n" for trace in traces]
    write_here(folder.part(source, number).path, "".join(lines).encode())


def read_part(folder: TraceFolder, source: int, number: int) -> list[Trace]:
    """A part, as the main rank reads it. All ranks must call this.

    Raises:
        ValueError: it is missing or damaged.
    """
    file = folder.part(source, number).path
    found: list[Trace] | str = ""
    try:
        # not splitlines(), which also splits at separators inside texts
        lines = file.read_text("utf-8").split("\n") if distributed.is_main() else []
        found = [Trace(**json_text.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        found = str(error)
    found = distributed.agree(found)
    if isinstance(found, str):
        raise ValueError(
            f"{file} is missing or damaged ({found}); put it back, or begin anew with --overwrite"
        )
    return found


def fingerprint(folder: TraceFolder) -> str:
    """SHA-256 of all parts, as the main rank sees them. All ranks must call this."""
    digest = hashlib.sha256()
    for file in folder.parts() if distributed.is_main() else []:
        digest.update(file.name.encode() + file.read_bytes())
    return distributed.agree(digest.hexdigest())


def collect(
    folder: TraceFolder,
    source: int,
    documents: Sequence[Document],
    tracer: Tracer | None,
    *,
    num_tokens: float | None,
    right_share: float,
    seed: int = 0,
    description: str = "traces",
) -> list[Trace]:
    """Traces of the first documents: as many as it takes until those kept have ``num_tokens``.

    Parts on disk are read, missing ones made. Collective: all ranks must call it.

    Args:
        source: the number of this list of documents in the folder.
        tracer: None if all parts are there.
        num_tokens: None asks all documents.
        right_share: as for ``kept``.
        description: label of the progress bar.
    """
    parts = [documents[first : first + PART] for first in range(0, len(documents), PART)]
    # reading takes no time
    progress = _Progress(description, num_tokens, len(documents), right_share, tracer is None)
    found: list[Trace] = []
    with progress:
        # a wave: one part for each rank, of which the first that suffice are taken
        for first in range(0, len(parts), distributed.world_size()):
            wave = range(first, min(first + distributed.world_size(), len(parts)))
            for number in wave if tracer is not None else ():
                is_mine = number % distributed.world_size() == distributed.rank()
                if is_mine and not folder.part(source, number).is_whole():
                    assert tracer is not None
                    own_seed = seed + (source * 2**20 + number) * PART
                    traces = tracer.answer(parts[number], own_seed, progress.add)
                    write_part(folder, source, number, traces)
            distributed.barrier()
            for number in wave:
                found += read_part(folder, source, number)
                progress.set(found)
                if num_tokens is not None and progress.amount >= num_tokens:
                    return found
    return found


def kept(traces: Sequence[Trace], right_share: float) -> list[bool]:
    """Of each trace, whether it is kept; what follows a trace does not matter to it.

    Only answers that the model ended are. A wrong one is kept while at least ``right_share`` of
    those kept so far, with it, are right. Those that nobody can judge are kept and not counted.
    """
    keeps, num_right, num_wrong = [], 0, 0
    for trace in traces:
        keep = trace.finished and bool(trace.own.strip())
        if keep and trace.right is False:
            keep = num_right >= right_share * (num_right + num_wrong + 1)
        keeps.append(keep)
        num_right += keep and trace.right is True
        num_wrong += keep and trace.right is False
    return keeps


def summary(traces: Sequence[Trace], right_share: float) -> dict[str, Any]:
    """How many were asked, ended, could be judged, are right and are kept, and the mean length of
    all answers in tokens. Plain text is not counted.
    """
    keeps = kept(traces, right_share)
    asked = [(trace, keep) for trace, keep in zip(traces, keeps, strict=True) if trace.question]
    every = [trace for trace, _ in asked]
    return {
        "asked": len(every),
        "finished": sum(trace.finished for trace in every),
        "judged": sum(trace.finished and trace.right is not None for trace in every),
        "right": sum(trace.right is True for trace in every),
        "kept": sum(keep for _, keep in asked),
        "mean_tokens": sum(trace.tokens for trace in every) / max(1, len(every)),
    }


class _Progress:
    """A progress bar on the main rank: tokens that are kept or, if all are asked, documents."""

    def __init__(
        self,
        description: str,
        num_tokens: float | None,
        num_documents: int,
        right_share: float,
        is_quiet: bool,
    ) -> None:
        self.in_tokens, self.right_share = num_tokens is not None, right_share
        self.amount = 0
        self.bar = Steps(
            description,
            num_documents if num_tokens is None else round(num_tokens),
            unit=" tokens" if self.in_tokens else " documents",
            hidden=is_quiet,
        )

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, traces: list[Trace]) -> None:
        """Move on by a batch of this rank's; the other ranks have made about as much."""
        self.bar.update(self._count(traces) * distributed.world_size())

    def set(self, traces: list[Trace]) -> None:
        """Say what there is exactly."""
        self.amount = self._count(traces)
        self.bar.n = min(self.amount, self.bar.total or 0)

    def _count(self, traces: list[Trace]) -> int:
        if not self.in_tokens:
            return len(traces)
        keeps = kept(traces, self.right_share)
        return sum(each.num_tokens for each, keep in zip(traces, keeps, strict=True) if keep)


def own_documents(
    form: Form, documents: Sequence[Document], traces: Sequence[Trace], right_share: float
) -> Iterator[tuple[Document, Document]]:
    """Yield (the document of a trace that is kept, the document that it answers), in order."""
    for document, trace, keep in zip(documents, traces, kept(traces, right_share), strict=False):
        if keep:
            yield form.document(document, trace), document


def _unasked(document: Document, num_tokens: int) -> Trace:
    """Of plain text itself; of a question that leaves no room for an answer, none."""
    is_text = not document.question
    own = document.answer if is_text else ""
    right = None if is_text else False
    return Trace(document.question, document.answer, own, num_tokens, 0, is_text, right)


def _asked(document: Document, request: Sequence[str]) -> list[dict[str, Any]]:
    """The turns before a document's answer, the last of which ends with the request."""
    turns = prompt_messages(document)
    turns[-1] = {**turns[-1], "content": "\n".join([turns[-1]["content"], *request])}
    return turns


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
