"""What all benchmarks share: clocks, the machine, files of results, tables."""
