"""``import ptl_fast.flap`` teaches transformers to load models with FLAP's bias; the code is in
ptl_fast.baselines.flap.
"""

from ptl_fast.baselines.flap import *  # noqa: F403
