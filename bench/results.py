"""What was measured, and the page that shows it: ``results.jsonl`` keeps every run, ``RESULTS.md`` is drawn from it.

A table of the page stands between two comments and is drawn anew by whoever measures; all other text is by hand.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOG, PAGE = HERE / "results.jsonl", HERE / "RESULTS.md"
Run = dict[str, Any]


def machine() -> str:
    """The processor, threads and versions that a figure belongs to."""
    import torch

    cpu = _read(Path("/proc/cpuinfo"))
    device = next(iter(re.findall(r"model name\s*:\s*(.+)", cpu)), platform.processor())
    for kind in re.findall(r"\b(amx_bf16|avx512_bf16)\b", cpu)[:1]:
        device += f" ({kind})"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    kept = " ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{device}, {torch.get_num_threads()} threads, {kept}"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def record(table: str, case: str, runs: dict[str, list[Run]], **facts: Any) -> None:
    """Keep all contenders' runs of one case of a table.

    Args:
        table: its name on the page.
        case: what was worked on: model, stage, setting; one line of the table (or one a contender).
        runs: of each contender, ours first, in the order they took turns.
        facts: what else the page is to tell.
    """
    speed = {c: [r["tokens"] / r["seconds"] for r in of] for c, of in runs.items()}
    ours = next(iter(speed.values()))
    facts["ratios"] = {c: [a / b for a, b in zip(ours, theirs, strict=False)] for c, theirs in speed.items()}
    row = {"table": table, "case": case, "runs": runs, **facts, "machine": machine(), "date": str(date.today())}
    with LOG.open("a") as f:
        f.write(json.dumps(row) + "\n")


def turns(
    commands: dict[str, list[str]], repeats: int, once: Iterable[str] = (), env: dict[str, dict[str, str]] | None = None
) -> dict[str, list[Run]]:
    """Let contenders take turns, each time in a process of its own whose last line is its run as JSON.

    Args:
        commands: of each contender, after ``python``.
        repeats: turns of each.
        once: who has only one, being slow.
        env: of each contender, besides this process's own.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
    found: dict[str, list[Run]] = {c: [] for c in commands}
    for turn in range(repeats):
        for c, command in commands.items():
            if turn and c in once:
                continue
            own = {**os.environ, **quiet, **(env or {}).get(c, {})}
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=own)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
            found[c].append(json.loads(done.stdout.splitlines()[-1]))
            last = found[c][-1]
            print(f"{' '.join(command[1:3])}: {last['tokens'] / last['seconds']:.0f}/s", file=sys.stderr)
    return found


def draw(table: str, head: str, lines: Callable[[dict[str, Any]], Iterable[str]]) -> str:
    """Draw a table of the page from the newest runs of each contender in each of its cases, by machine; returns it.

    Args:
        table: its name; the page has it between ``<!-- NAME -->`` and ``<!-- end -->``, or gets it at its end.
        head: the header line, ``| … | … |``.
        lines: a record -> its lines.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for text in LOG.read_text().splitlines():
        row = json.loads(text)
        if row["table"] == table:
            key = (row["case"], row["machine"])
            old = newest.get(key, row)
            both = {k: {**old[k], **row[k]} for k, v in row.items() if isinstance(v, dict)}
            newest[key] = {**row, **both}
    where: dict[str, list[dict[str, Any]]] = {}
    for row in newest.values():
        where.setdefault(row["machine"], []).append(row)
    body = []
    for machine, some in where.items():
        body += [f"| **{machine}** |{' |' * (head.count('|') - 2)}"] if len(where) > 1 else []
        body += [line for row in some for line in lines(row)]
    rule = "|" + "---|" * (head.count("|") - 1)
    dates = [f"Measured on {m}, {max(r['date'] for r in some)}." for m, some in where.items()]
    drawn = "\n".join([*dates, "", head, rule, *body])
    block = f"<!-- {table} -->\n{drawn}\n<!-- end -->"
    page = PAGE.read_text() if PAGE.exists() else "# Measured\n"
    old = re.compile(rf"<!-- {re.escape(table)} -->.*?<!-- end -->", re.DOTALL)
    page = old.sub(lambda _: block, page) if old.search(page) else f"{page.rstrip()}\n\n## {table}\n\n{block}\n"
    PAGE.write_text(page)
    return drawn


def spread(figures: list[float], digits: int = 0) -> str:
    """``median (least – most)``, or the one figure there is."""
    shown = [f"{x:,.{digits}f}" for x in (statistics.median(figures), min(figures), max(figures))]
    return shown[0] if len(figures) == 1 else f"{shown[0]} ({shown[1]} – {shown[2]})"
