"""Recovery by on-policy distillation: the model answers, and a teacher judges every token."""
