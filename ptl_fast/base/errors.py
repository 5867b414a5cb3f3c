"""Exceptions that one stage raises and another one handles."""


class Diverged(ValueError):
    """The loss, or an evaluation of the model, is NaN or infinite.

    With a quality gate the round is undone; without one the run ends with this error.
    """


class StorageFailed(OSError):
    """A file or folder of the run cannot be written; the message names it, and says why."""


class NotJoined(ValueError):
    """This rank has no process group, so no other rank hears of it, or tells it."""


class OutOfMemory(ValueError):
    """There is too little memory for something; the message names it, and what helps."""
