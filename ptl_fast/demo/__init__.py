"""The bundled model: its problems, its training, its weights."""
