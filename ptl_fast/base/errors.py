"""Errors that one stage raises and another one handles."""


class Diverged(ValueError):
    """The loss, or what came of it, is NaN or infinite. With a quality gate such a round is undone;
    without one the run ends.
    """
