"""Operations on feed-forward neurons and decoder layers, usable without ptl_fast.

Imports only the standard library, torch and triton.
"""

from ptl_kernels.reference import compact_columns, compact_rows, neuron_square_sums, residual_change

__all__ = ["compact_columns", "compact_rows", "neuron_square_sums", "residual_change"]
