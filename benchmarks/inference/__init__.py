"""Whether the compressed model is really faster."""
