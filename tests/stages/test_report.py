"""``xwin report`` through the command line: page, standard output, summary, and when it has nothing to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakerun


def test_page_then_summary_then_nothing(xwin: Any, tmp_path: Path) -> None:
    fakerun.make(tmp_path / "run", prompts=8, n=2)
    assert "no page yet" in xwin("report", "--data", "run", "--text").stdout
    done = xwin("report", "--data", "run", "--title", "A <title>")
    html = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert done.stdout == "" and html.startswith("<!doctype html>") and "<h1>A &lt;title&gt;</h1>" in html
    made = json.loads((tmp_path / "run/report.html.xwin.json").read_text())
    assert made["stage"] == "report" and made["counts"] == {"artifacts": 18, "evaluations": 1}

    text = xwin("report", "--data", "run", "--text").stdout
    assert text.splitlines()[-1] == "report: run/report.html" and "worst of 2" in text

    assert "up to date" in xwin("report", "--data", "run", "--title", "A <title>").stderr
    assert "wrote" in xwin("report", "--data", "run").stderr  # another title is another page
    piped = xwin("report", "--data", "run", "--out", "-").stdout
    assert piped.startswith("<!doctype html>") and piped.endswith("</html>\n")
    fakerun.stage(tmp_path / "run/new.jsonl", "sample", [], 1)
    xwin("report", "--data", "run")
    assert "new.jsonl" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_no_folder_no_traceback(xwin: Any) -> None:
    done = xwin("report", "--data", "none", code=1)
    assert "none: no such folder" in done.stderr and "Traceback" not in done.stderr
