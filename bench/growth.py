"""What more prompts cost: time of ``xwin sample`` for twice the prompts, memory for ten times as many.

    python bench/growth.py [--prompts 8] [--n 64] [--lines 10000]

Whole processes of the command line. Time is that of the native engine on the made 5M model, start-up included; memory
that of the ``echo`` engine, which leaves only what the stage itself holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import world

HEAD = "| | prompts | seconds | peak MB | of the first: time | memory |"


# a process between, since a child counts what its parent holds when it forks
ALONE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stderr=subprocess.PIPE)
sys.stderr.buffer.write(done.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(done.returncode)
"""


def xwin(*options: object) -> dict[str, Any]:
    """One run of ``xwin sample`` as a record: seconds and peak memory of its process."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "xwincli", "sample", "--force", *map(str, options)]
    done = subprocess.run([sys.executable, "-c", ALONE, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"tokens": 1, "seconds": time.perf_counter() - begun, "peak": float(done.stdout)}


def lines(row: dict[str, Any]) -> list[str]:
    """The lines of one record on the page, one a size."""
    first = next(iter(row["runs"].values()))[0]
    found = []
    for i, (size, (run,)) in enumerate(row["runs"].items()):
        cells = ["" if i else row["case"], f"{int(size):,}", f"{run['seconds']:.1f}", f"{run['peak']:,.0f}"]
        cells += [f"{run['seconds'] / first['seconds']:.2f}", f"{run['peak'] / first['peak']:.2f}"] if i else ["", ""]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    """Run all sizes and draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--lines", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, data, out = Path(scratch) / "S", Path(scratch) / "p.jsonl", Path(scratch) / "g.jsonl"
        world.policy(world.MODELS["S"], model)
        runs = {}
        for count in (args.prompts, 2 * args.prompts):
            world.pairs(world.MODELS["S"].vocab, count, data)
            work = ["--model", model, "--n", args.n, "--max-tokens", 200, "--device", "cpu"]
            runs[str(count)] = [xwin("--data", data, "--out", out, *work)]
        results.record("Growth", f"native engine, 5M model, n = {args.n}, 200 new tokens", runs)
        runs = {}
        for count in (args.lines, 10 * args.lines):
            with data.open("w") as f:
                f.writelines(json.dumps({"prompt": f"question {i} of many"}) + "\n" for i in range(count))
            runs[str(count)] = [xwin("--data", data, "--out", out, "--engine", "echo", "--n", 4)]
        results.record("Growth", "echo engine, n = 4", runs)
    print(results.draw("Growth", HEAD, lines))


if __name__ == "__main__":
    main()
