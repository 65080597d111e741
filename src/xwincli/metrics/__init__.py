"""Numbers about responses and comparisons: numpy only, no models, no files."""
