"""One compression from its settings to its result: the loop, its rounds, its folder, its report."""
