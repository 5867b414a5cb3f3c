"""The evaluation tasks that this package ships, for lm-eval."""
