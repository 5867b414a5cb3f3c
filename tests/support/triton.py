"""Where Triton kernels run in the tests, and with which types."""

import torch

# Without a GPU they run in Triton's interpreter, which computes bf16 products wrongly.
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_DTYPES = [
    torch.float32,
    torch.float16,
    *([torch.bfloat16] if torch.cuda.is_available() else []),
]
