"""One training core for all stages: a plan of integers, losses that are sums, one loop."""
