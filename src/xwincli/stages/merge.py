"""Join the files that the shards of one run have made.

    xwin merge groups.shard-*-of-8.jsonl --out groups.jsonl

The result is the file that one process would have written, rows in the order of its input, with its manifest. All
shards must be there and of one run. The last shard to finish does the same by itself; this is for files brought
together from machines that share no folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from xwincli import shards, sources
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin merge``."""

    files: list[str] = flag([], "all shards' files, in any order", positional=True)
    out: str = flag(help="file to write")


def run(config: Config) -> None:
    """Check that they belong together, and join."""
    shards.join(config.out, sources.expand(config.files))
