"""From results and true positions to metrics."""
