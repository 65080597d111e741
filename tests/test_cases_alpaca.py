"""AlpacaEval 2 on real annotations: the published figures, those of the alpaca_eval package, and malformed files."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xwincli.errors import XwinError
from xwincli.metrics import length_control, win_rate
from xwincli.metrics.length_control import Weights, compatible, from_weights
from xwincli.protocols import alpaca
from xwincli.protocols.alpaca_files import read_annotations, read_calibration
from xwincli.stages.eval_alpaca import Config, run

CASES = os.environ.get("XWIN_CASES", "")
FOLDER = Path(CASES) / "alpaca"
pytestmark = pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")

RAW = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
FORMS = {
    "length_controlled_v1": "alpaca_eval_package",
    "length_controlled_noreg": "alpaca_eval_package_noreg",
    "length_controlled_minimal": "alpaca_eval_package_minimal",
}


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(FOLDER / name, "rt", encoding="utf-8", newline="\n") as f:
        yield from map(json.loads, f)


EXPECTED = load("expected_ae2.json") if CASES else {}
OTHERS = load("expected_other_judges.json") if CASES else {}
ORIGINAL = [m for m in EXPECTED if (FOLDER / m / JUDGE / "annotations.json").exists()]
GAMED = str(FOLDER / "ref" / "df_gamed.csv")


def evaluated(tmp_path: Path, file: Path, full: int = 805, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The command's eval.json and leaderboard row; exit 3 exactly where values are missing."""
    config = Config(files=[str(file)], out=str(tmp_path / "out"), rounds=100, **options)
    rows = [r for r in json.loads(file.read_text(encoding="utf-8")) if r["preference"] is not None]
    if len(rows) < full:
        with pytest.raises(XwinError, match=f"n = {len(rows)} of {full}") as e:
            run(config)
        assert e.value.code == 3
    else:
        run(config)
    with (tmp_path / "out" / "leaderboard.csv").open(encoding="utf-8", newline="") as f:
        row = next(csv.DictReader(f))
    return json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8")), row


def held(expected: dict[str, Any], facts: dict[str, Any], row: dict[str, str]) -> None:
    """Raw figures to 1e-6; length control within .06 of the package and .20 of what was published."""
    for name in RAW:
        assert facts[name] == pytest.approx(expected["published"][name], abs=1e-6), name
        assert facts[name] == pytest.approx(expected["alpaca_eval_package"][name], abs=1e-6), name
        assert float(row[name]) == facts[name]
    assert facts["avg_length"] == expected["avg_length_from_annotations"]
    if facts["n_total"] == 805:  # else that of the outputs, of which some were not annotated
        assert facts["avg_length"] == expected["published"]["avg_length"]
    for form, key in FORMS.items():
        ours, theirs = facts["package"][form], expected[key]
        assert ours["value"] == pytest.approx(theirs["length_controlled_winrate"], abs=0.06), form
        assert ours["standard_error"] == pytest.approx(theirs["lc_standard_error"], abs=0.06), form
        assert ours["c"] == pytest.approx(theirs["C"]) if theirs.get("C") else ours["c"] is None
        if "weights" in theirs:
            assert ours["weights"] == pytest.approx(theirs["weights"], abs=0.01)
    lc, published = float(row["length_controlled_winrate"]), expected["published"]
    assert lc == pytest.approx(published["length_controlled_winrate"], abs=0.2)


def expand(tmp_path: Path, model: str) -> Path:
    """A compact row as an annotation file, made by the cases' own script."""
    made = tmp_path / "annotations.json"
    compact = str(FOLDER / "ae2_weighted_compact.jsonl.gz")
    subprocess.run([sys.executable, str(FOLDER / "expand.py"), compact, model, str(made)], check=True)
    return made


@pytest.mark.parametrize("model", EXPECTED)
def test_compact_rows(tmp_path: Path, model: str) -> None:
    held(EXPECTED[model], *evaluated(tmp_path, expand(tmp_path, model), calibration=GAMED))


@pytest.mark.parametrize("model", ORIGINAL)
def test_original_annotations(tmp_path: Path, model: str) -> None:
    file = FOLDER / model / JUDGE / "annotations.json"
    held(EXPECTED[model], *evaluated(tmp_path, file, calibration=GAMED))
    assert json.loads((tmp_path / "out" / "annotations.json").read_text("utf-8")) == json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("name", [n for n in OTHERS if (FOLDER / n.split("/")[1] / n.split("/")[0]).exists()])
def test_other_judges(tmp_path: Path, name: str) -> None:
    judge, model = name.split("/")
    expected = OTHERS[name]
    facts, _ = evaluated(tmp_path, FOLDER / model / judge / "annotations.json")
    for key in RAW:
        assert facts[key] == pytest.approx(expected["alpaca_eval_package"][key], abs=1e-6), key
        assert facts[key] == pytest.approx(expected["published"][key], abs=1e-6), key
    assert len(facts["without_value"]) == expected["n_null_preferences"]


def test_given_the_published_c_length_control_is_the_published_within_a_fiftieth() -> None:
    calibration, seen = read_calibration(GAMED), 0
    for row in lines("ae2_weighted_compact.jsonl.gz"):
        expected = EXPECTED.get(row["model"], {})
        if "published_C" not in expected:
            continue
        chances = [None if p is None else 0.5 if p == 0 else p - 1 for p in row["preference"]]
        made = compatible(chances, row["len_1"], row["len_2"], calibration, c=expected["published_C"])
        assert made is not None
        assert made.value == pytest.approx(expected["published"]["length_controlled_winrate"], abs=0.02), row["model"]
        seen += 1
    assert seen >= 4


def test_published_weights_give_the_published_length_control() -> None:
    difficulty = read_calibration(GAMED).difficulty
    for case in load("lc_from_weights.json"):
        value, error = from_weights(Weights(**case["weights"]), difficulty[: case["rows_used"]])
        assert value == pytest.approx(case["recomputed_lc"], abs=1e-6), case["model"]
        assert value == pytest.approx(case["published_lc"], abs=1e-6), case["model"]
        assert error == pytest.approx(case["recomputed_lc_se"], abs=1e-6), case["model"]
    for case in lines("lc_per_item.jsonl.gz"):
        for x, chance in zip(difficulty, case["per_item"], strict=False):
            assert from_weights(Weights(*case["weights"]), [x])[0] / 100 == pytest.approx(chance, abs=1e-6)


def test_the_difficulty_in_the_gamed_rows_is_the_published_one() -> None:
    with (FOLDER / "ref" / "instruction_difficulty.csv").open(encoding="utf-8", newline="") as f:
        published = [float(r["instruction_difficulty"]) for r in csv.DictReader(f)]
    assert read_calibration(GAMED).difficulty.tolist() == pytest.approx(published, abs=1e-8)


def test_our_own_length_control_is_near_the_packages_minimal_form() -> None:
    """Ours is weakly ridged where theirs is L1 with a drawn C: they agree within a quarter of a point."""
    for model in ORIGINAL:
        if model == "gpt4_1106_preview":
            continue
        known = read_annotations([str(FOLDER / model / JUDGE / "annotations.json")])
        rows = [(a.chance, len(a.row["output_1"]), len(a.row["output_2"])) for a in known.values()]
        columns = ([[v] for v in column] for column in zip(*rows, strict=True))
        ours = win_rate.length_controlled(*columns, rounds=2).value
        theirs = EXPECTED[model]["alpaca_eval_package_minimal"]["length_controlled_winrate"]
        assert ours == pytest.approx(theirs, abs=0.25), model


def test_the_coin_is_the_one_that_was_thrown() -> None:
    for name in ("logprob_judge.jsonl", "ranking_judge.jsonl"):
        for line in (FOLDER / name).read_bytes().split(b"\n"):
            case = json.loads(line) if line.strip() else {}
            if case.get("is_switched") is not None:
                assert alpaca.model_first(case["instruction"]) == case["is_switched"]


def test_outputs_with_their_annotations_ask_no_judge(tmp_path: Path) -> None:
    """Joined by instruction with the baseline's file, everything is known and the figures are the same."""
    known = str(FOLDER / "alpaca-7b" / JUDGE / "annotations.json")
    base, model = (str(FOLDER / m / "model_outputs.json") for m in ("gpt4_1106_preview", "alpaca-7b"))
    run(Config(files=[model, known], out=str(tmp_path / "a"), baseline=base, calibration=GAMED, rounds=100))
    facts = json.loads((tmp_path / "a" / "eval.json").read_text(encoding="utf-8"))
    assert facts["annotators"] == {JUDGE: 805} and facts["receipt"] == {} and facts["missing"] == {}
    fit = facts["package"][length_control.V1]
    assert fit["value"] == pytest.approx(EXPECTED["alpaca-7b"]["published"]["length_controlled_winrate"], abs=0.2)


def test_outputs_that_lack_instructions_are_refused_by_name(tmp_path: Path) -> None:
    base, model = (str(FOLDER / m / "model_outputs.json") for m in ("gpt4_1106_preview", "phi-2"))
    with pytest.raises(XwinError, match=r"phi-2.*: field instruction: 2 of 805 instructions are missing: '"):
        run(Config(files=[model], out=str(tmp_path / "a"), baseline=base))
    assert not (tmp_path / "a").exists()


def test_malformed_files_are_refused_as_their_manifest_says(tmp_path: Path) -> None:
    base = [{"instruction": f"Do {i}", "output": "out", "generator": "base"} for i in (1, 2, 3)]
    (tmp_path / "base.json").write_text(json.dumps(base))
    command = f"{sys.executable} -m xwincli eval alpaca {{in}} --out {{out}}.d --rounds 100"
    for only, more in (("^judge/lc_one_row", ""), ("^judge/outputs_", f" --baseline {tmp_path / 'base.json'}")):
        script = [sys.executable, str(Path(CASES) / "bad" / "run_bad.py"), "-v", "--only", only]
        done = subprocess.run([*script, "--cmd", command + more], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "0/0" not in done.stdout, done.stdout
