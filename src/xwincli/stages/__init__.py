"""One file, one command: docstring, Config, run. Stages know nothing of each other."""
