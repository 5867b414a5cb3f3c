"""The demo model that ships with the package: its arithmetic problems, training and weights."""
