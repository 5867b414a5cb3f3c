"""What every stage may use and that knows nothing of models: messages, ranks, files, errors."""
