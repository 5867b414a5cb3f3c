"""How fast a model is scored."""
