"""lm-eval tasks that this package ships: YAML files, and the functions that they refer to."""
