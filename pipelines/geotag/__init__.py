"""From results to positions, or to "don't know"."""
