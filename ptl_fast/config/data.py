"""What the run reads, and how rows become training text."""

from dataclasses import dataclass, field

from ptl_fast.config.checking import as_text, check_at_least_one, former_default


@dataclass(kw_only=True)
class DataSettings:
    """What the run reads, and how rows become training text."""

    data: str | None = None
    """Reasoning data for scoring and recovery: a .jsonl, .json, .parquet, .csv, .tsv or .txt file
    (also as .gz or .zst), a folder, or a hub data set (OWNER/NAME[/FOLDER][:[CONFIG:]SPLIT]).
    Columns {question, answer}, {query, response}, {problem, solution}, {prompt, completion},
    {instruction, output}, {messages}, {conversations}, {text} or {content}. Commas separate
    sources; SOURCE@WEIGHT gives each its part of every round's training tokens, without weights
    they are joined."""

    data_revision: str | None = None
    """Branch, tag or commit of --data's one hub data set (default: its main branch)."""

    question_column: str | None = None
    """The column of --data and of nll=FILE that holds the question, where it is not one of the
    names above.
    """

    answer_column: str | None = None
    """The column that holds the answer, for example answer where solution would be taken."""

    text_column: str | None = None
    """The column that holds plain text; it goes before question and answer."""

    template: str = field(default="auto", metadata=former_default("lines"))
    """How question and answer are joined, in training and for nll: lines (Question: ..., new line,
    Answer: ...), paper (as the paper's code: nothing between question and 'Answer: '), chat (the
    tokenizer's own chat template, which also writes whole chats, with all their turns and tool
    calls), or a text with {question} that ends with {answer}. auto is chat for rows that are chats,
    where the tokenizer has a chat template, and lines for all else. By the others, the turns before
    a chat's last answer are the question."""

    streaming: bool = False
    """Read --data's hub data sets and folders without storing them, in an order drawn by the seed,
    and only until --recovery-tokens are there: a sample of the shards that come first. For what is
    too large for the disk; memory is bounded without it too."""

    sequence_length: int = 1024
    """Tokens in a packed sequence. Of a model with fewer positions than the default, so many."""

    protect: str | None = None
    """Text (same formats) whose skills shall stay though --data lacks them: other general text,
    problems of another kind.
    """

    def __post_init__(self) -> None:
        self.data, self.protect = as_text(self.data), as_text(self.protect)

    def check(self) -> None:
        """Raise ValueError for a length that no model could train on."""
        check_at_least_one(self, ["sequence_length"])
        if self.sequence_length < 2:
            raise ValueError(
                f"--sequence-length {self.sequence_length} must be at least 2: each token is"
                " predicted from those before"
            )
