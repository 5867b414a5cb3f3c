"""Pruning methods on equal terms."""
