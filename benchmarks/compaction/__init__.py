"""How fast neurons are removed."""
