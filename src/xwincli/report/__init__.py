"""A finished run as one page and as one table, made from its manifests and records alone."""
