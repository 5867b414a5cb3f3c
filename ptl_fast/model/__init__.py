"""The model to compress: where its layers are, loading it, counting its parameters and FLOPs."""
