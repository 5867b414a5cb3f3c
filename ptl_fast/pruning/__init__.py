"""Which neurons and layers go in which round, and removing them."""
