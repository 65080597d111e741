"""Show a finished run: one self-contained HTML page, or (`--text`) its table on the terminal.

`xwin report --data RUN` reads every manifest below a folder, the evaluations and training curves there, and
writes `RUN/report.html`: the table of models, what was made from what, curves, best-of-n, distributions of
scores, a dozen prompts with every model's answer, and where the time went. The page loads nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from xwincli import jsonl, manifest
from xwincli.console import say, stdout
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin report``."""

    data: str = flag(help="folder of a run, as the stages left it")
    out: str = flag("", "the page (- is standard output); RUN/report.html if left out")
    title: str = flag("", "of the page; else the folder's name")
    text: bool = flag(False, "print the table and three examples instead of writing the page", execution=True)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)


def run(config: Config) -> None:
    """Collect, then render a page or print a summary."""
    from xwincli.report import collect, page, summary

    folder, started = Path(config.data), time.time()
    if config.text:
        stdout().write(summary.terminal(collect.collect(folder)) + "\n")
        return
    out = config.out or str(folder / "report.html")
    plan = manifest.plan("report", config, [str(p) for p in collect.manifests(folder)])
    if manifest.skip_if_current(out, plan, config.force):
        return
    found = collect.collect(folder)
    html = page.render(found, config.title)
    if out == "-":
        stdout().write(html)
        return
    with jsonl.atomic(Path(out)) as f:
        f.write(html)
    counts = {"artifacts": len(found.artifacts), "evaluations": len(found.evaluations)}
    manifest.write(out, plan, config, started=started, counts=counts)
    say(f"wrote {out}")
