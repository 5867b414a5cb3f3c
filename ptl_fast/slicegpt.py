"""``import ptl_fast.slicegpt`` teaches transformers to load sliced models; the code is in
ptl_fast.baselines.slicegpt.
"""

from ptl_fast.baselines.slicegpt import *  # noqa: F403
