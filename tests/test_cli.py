"""The command line's edges: exit codes, sentences, pipes."""

from __future__ import annotations

import subprocess
import sys

import xwincli


def test_version_and_help(xwin):
    assert xwin("--version").stdout == f"xwincli {xwincli.__version__}\n"
    page = xwin("--help").stdout
    assert page == xwin().stdout
    assert page.index("sft") < page.index("sample") < page.index("judge") < page.index("train-rm")


def test_an_unknown_stage_is_a_usage_error_with_a_guess(xwin):
    done = xwin("smaple", code=2)
    assert "did you mean 'sample'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_family_lists_its_members(xwin):
    assert "xwin eval compare" in xwin("eval", "--help").stdout
    assert "compare" in xwin("eval", code=2).stderr


def test_a_missing_file_is_one_sentence(xwin, tmp_path):
    done = xwin("convert", "--data", "nowhere.jsonl", "--out", "x.jsonl", code=1)
    assert "nowhere.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_quiet(tmp_path):
    rows = "".join(f'{{"prompt":"question {i}"}}\n' for i in range(20000))
    (tmp_path / "p.jsonl").write_text(rows)
    command = f"{sys.executable} -m xwincli convert --data p.jsonl | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
