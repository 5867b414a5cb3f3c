"""A round that diverged can be told from settings that do not fit, and ends like them."""

import pytest

from ptl_fast.base.errors import Diverged


def test_diverged_is_an_error_that_the_user_can_mend() -> None:
    with pytest.raises(ValueError, match="loss is nan"):
        raise Diverged("loss is nan")
    assert not isinstance(ValueError("a setting"), Diverged)
