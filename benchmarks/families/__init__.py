"""Which model types can be compressed, tried on tiny random models of each."""
