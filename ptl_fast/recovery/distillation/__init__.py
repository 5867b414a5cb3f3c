"""Recovery by distillation: the loss, and the teacher's predictions on disk."""
