"""From results, metrics and geotags to one page that a person looks at."""
