"""Recovery by knowledge distillation from the original model, with cached teacher predictions."""
