"""The index of a journal says what a dictionary and a list would, and holds next to nothing."""

from __future__ import annotations

import resource
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from xwincli.index import Index

KEYS = st.sampled_from(["a", "b", "c", "a#2"])


@given(st.lists(st.tuples(KEYS, st.booleans(), st.integers(0, 2)), max_size=30))
def test_it_says_what_dictionaries_would(rows):
    index, seen, order, places = Index(), {}, [], {}
    for at, (key, mine, finishes) in enumerate(rows):
        if finishes == 2:  # an earlier run finished it
            index.finish(key, places.setdefault(key, at))
        seen[key] = seen.get(key, 0) + 1
        wanted = key if seen[key] == 1 else f"{key}#{seen[key]}"
        assert index.give(key, mine) == wanted
        order += [wanted] * mine
        assert (wanted in index) == (wanted in places)
        if finishes == 1:
            places[wanted] = at
            index.finish(wanted, at)
    assert list(index) == [(key, places.get(key)) for key in order]
    assert (index.given, index.finished) == (len(order), len(places))


def test_300_000_rows_stay_within_a_few_megabytes():
    program = """
import resource
from xwincli.index import Index
index, most = Index(), []
for i in range(300_000):
    index.finish(index.give(f"{i * 2654435761 % 2**64:016x}", True), i)
    if i in (20_000, 299_999):
        most.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert sum(1 for _ in index) == 300_000
print(most[1] - most[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * 1024  # kilobytes; dictionaries take over a hundred thousand


def test_no_room_for_temporary_files_is_one_sentence():
    limit = 1 << 20

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    program = """
from xwincli.errors import XwinError
from xwincli.index import Index
index = Index()
try:
    for i in range(200_000):
        index.finish(index.give(f"{i * 2654435761 % 2**64:016x}", True), i)
except XwinError as e:
    print(e.message, "|", e.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=full)
    assert done.stdout.startswith("the folder for temporary files: ") and "TMPDIR" in done.stdout, done.stderr
