"""The training that follows each pruning: one module, or one package, a method."""
