"""Choosing among a prompt's scored responses: what may be chosen, what is, and what is rejected beside it."""
