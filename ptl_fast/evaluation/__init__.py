"""What a model can do: negative log-likelihood, and tasks of lm-eval with answers that are judged
right or wrong.
"""
