"""From files and hub data sets to packed token sequences and batches of them."""
