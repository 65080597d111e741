"""The demo's small world: verifiable demands on answers, and the instructions that carry them."""
