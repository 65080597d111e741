"""The ledger: what is left out is counted by reason and shown; too much of it stops with exit code 4."""

from __future__ import annotations

import json

import pytest

from xwincli.errors import LIMIT, USER_ERROR, XwinError
from xwincli.train.ledger import Ledger

REMEDIES = {"too long": "raise --max-length"}


def filled(kept: int, long: int, equal: int = 0) -> Ledger:
    ledger = Ledger("pairs", REMEDIES)
    for _ in range(kept):
        ledger.keep()
    for i in range(long):
        ledger.drop("too long", f"l{i}")
    for i in range(equal):
        ledger.drop("with equal sides", f"e{i}")
    return ledger


def test_reasons_are_counted_and_the_first_ids_named(capsys):
    ledger = filled(4, 4, 2)
    ledger.close(0.6)  # 6 of 10: exactly as much as is allowed
    assert ledger.counts() == {"too long": 4, "with equal sides": 2}
    assert capsys.readouterr().err == (
        "warning: 6 of 10 pairs left out: 4 too long (l0, l1, l2, …); 2 with equal sides (e0, e1)\n"
    )


def test_nothing_is_said_where_nothing_is_left_out(capsys):
    filled(3, 0).close(0.0)
    assert capsys.readouterr().err == ""


def test_more_than_max_drop_stops_with_its_reasons():
    with pytest.raises(XwinError, match=r"5 of 9 pairs left out: .*more than --max-drop 0\.5") as e:
        filled(4, 5).close(0.5)
    assert (e.value.code, e.value.hint) == (LIMIT, "raise --max-length")
    with pytest.raises(XwinError) as e:
        filled(4, 0, 5).close(0.5)
    assert e.value.hint == "raise --max-drop"


@pytest.mark.parametrize("long,text", [(2, "no pairs left to train on: 2 of 2"), (0, "no pairs to train on")])
def test_nothing_left_is_an_error_whatever_is_allowed(long, text):
    with pytest.raises(XwinError, match=text) as e:
        filled(0, long).close(1.0)
    assert e.value.code == USER_ERROR


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


LONG = "tea rain fox " * 200  # beyond the micro policy's context of 512


@pytest.mark.parametrize("stage", ["sft", "train-rm", "dpo"])
def test_a_row_beyond_the_models_context_is_left_out_and_may_stop_the_run(xwin, policy, tmp_path, stage):
    rows = []
    for text in ["tea .", "the rain .", LONG]:
        row = {
            "prompt": said("user", "about ?"),
            "chosen": said("assistant", text),
            "rejected": said("assistant", "no"),
        }
        rows.append({"messages": row["prompt"] + row["chosen"]} if stage == "sft" else row)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    base = (stage, "--model", policy, "--data", "d.jsonl", "--device", "cpu", "--dtype", "float32", "--batch", 2)
    more = ("--valid", 0) if stage == "train-rm" else ()
    done = xwin(*base, *more, "--out", "no", "--max-drop", 0.2, code=LIMIT)
    assert "too long" in done.stderr
    assert "hint: raise --max-length" in done.stderr
    assert not list(tmp_path.glob("no*"))  # stopped before anything is made
    done = xwin(*base, *more, "--out", "yes", "--max-drop", 0.4)
    assert json.loads((tmp_path / "yes" / "xwin.json").read_text())["counts"]["dropped"] == {"too long": 1}
