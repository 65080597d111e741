"""The audit for people: warnings at their thresholds, tables and pictures that say what the audit says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import audits
import pytest

import fakerun
from xwincli import manifest
from xwincli.report import page, reward_models, svg
from xwincli.report.collect import Run, collect


@pytest.fixture(scope="module")
def audit() -> dict[str, Any]:
    return audits.make()


@pytest.fixture
def changed(audit):
    """The audit with other figures: ``changed(lead={...})``; dots in a name go deeper."""

    def call(**figures: Any) -> dict[str, Any]:
        new = copy.deepcopy(audit)
        for name, value in figures.items():
            *path, last = name.split("__")
            at = new
            for key in path:
                at = at[key]
            at[last] = value
        return new

    return call


def sound(changed, **figures: Any) -> list[tuple[str, str]]:
    """Warnings of an audit that has nothing wrong but what ``figures`` say."""
    fine = {"length__characters__within__pearson": 0.2, "calibration__verdict": "fits"}
    return reward_models.warnings(changed(**{**fine, **figures}))


def test_a_sound_reward_model_gets_no_warning(changed):
    assert sound(changed) == []


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        ({"value": 0.1, "low": 0.01, "high": 0.2}, None),
        ({"value": 0.1, "low": -0.01, "high": 0.2}, "is not clearly better"),
        ({"value": -0.1, "low": -0.2, "high": 0.01}, "is not better"),
        ({"value": 0.1, "low": None, "high": None}, None),
        ({"value": 0.0, "low": None, "high": None}, "is not better"),
        ({"value": None, "low": None, "high": None}, None),
    ],
)
def test_the_ruler_must_be_beaten(changed, lead, said):
    found = sound(changed, lead=lead)
    assert [said in what for what, _ in found] == ([True] if said else [])


@pytest.mark.parametrize(("r", "said"), [(0.5, None), (0.51, "longer answers win"), (-0.51, "shorter"), (None, None)])
def test_a_taste_for_length(changed, r, said):
    found = sound(changed, length__characters__within__pearson=r)
    assert [said in what for what, _ in found] == ([True] if said else [])


def test_calibration_needs_a_clear_verdict_and_an_error_that_matters(changed):
    def said(**c: Any) -> list[tuple[str, str]]:
        return sound(changed, **{f"calibration__{k}": v for k, v in c.items()})

    assert said(verdict="overconfident", expected_error=0.04) == []
    assert said(verdict="fits", expected_error=0.3) == []
    ((what, mend),) = said(verdict="overconfident", expected_error=0.06, temperature=2.5)
    assert "overconfident" in what
    assert "divide rewards by 2.50, or train with fewer --epochs" in mend
    ((_, mend),) = said(verdict="underconfident", expected_error=0.06, temperature=0.4)
    assert "more --epochs" in mend
    ((_, mend),) = said(verdict="overconfident", expected_error=0.06, temperature=None, why="no order")
    assert mend == "no scale mends them: no order"


def test_the_text_says_what_the_audit_says(audit):
    lines = reward_models.text(audit).splitlines()
    assert lines[0].split("  ")[0] == "audit on 120 pairs of 120 prompts"
    row = next(line for line in lines if line.startswith("accuracy"))
    e = audit["accuracy"]
    assert row.split() == ["accuracy", f"{e['value']:.3f}", f"{e['low']:.3f}", "–", f"{e['high']:.3f}"]
    for b in audit["by_length"]:
        row = next(line for line in lines if line.startswith(b["name"]) and "answer" not in line)
        assert row.split()[-3:] == [str(b["n"]), f"{b['accuracy']['value']:.3f}", f"{b['ruler']['value']:.3f}"]
    assert sum(line.startswith("margin") for line in lines) == len(audit["by_margin"])


def run_with(folder: Path, **found: dict[str, Any]) -> Run:
    """A run of reward models with these audits in their manifests."""
    for name, audit in found.items():
        stage = "audit rm" if name.startswith("audit") else "train-rm"
        fakerun.stage(folder / name, stage, ["pairs.jsonl", folder / "rm"], 3, metrics={"audit": audit})
    fakerun.stage(folder / "set.jsonl", "sample", ["prompts.jsonl"], 1)
    return collect(folder)


def test_every_audit_has_its_pictures(audit, changed, tmp_path):
    html = page.render(run_with(tmp_path / "r", audit_on_others=changed(pairs=4321), rm=audit))
    part = re.search(r'<section id="rewards">.*?</section>', html, re.S)
    assert part
    assert '<a href="#rewards">Reward models</a>' in html
    names = re.findall(r"<h3>(.*?)</h3>", part[0])
    assert names == ["rm", "audit_on_others: rm on pairs.jsonl"]
    pictures = re.findall(r"<svg.*?</svg>", part[0], re.S)
    assert len(pictures) == 8
    labels = [ElementTree.fromstring(p).get("aria-label") for p in pictures]
    assert labels[:4] == [
        "Accuracy by length of the chosen answer",
        "Accuracy by the judge's margin",
        "Calibration: how often the judge agrees",
        "Mean reward by length of the answer",
    ]
    assert f"{audit['calibration']['expected_error']:.3f}<small>overconfident</small>" in part[0]
    assert "4321" in part[0]
    assert part[0].count('<ul class="warnings">') == 2
    for b, e in ((b, b[who]) for b in audit["by_length"] for who in ("ruler", "accuracy")):
        assert f"{b['name']}: {e['value']:.3f}" in pictures[0]


def test_the_smallest_audit_has_a_page(tmp_path):
    small = audits.make(prompts=1)
    html = page.render(run_with(tmp_path / "r", rm=json.loads(json.dumps(small))))
    assert "Accuracy by length" in html
    assert "None" not in html
    assert "nan" not in html
    reward_models.text(small)


def test_a_run_without_audits_has_no_section(tmp_path):
    fakerun.stage(tmp_path / "a.jsonl", "sample", ["prompts.jsonl"], 2)
    assert "Reward models" not in page.render(collect(tmp_path))


def test_names_from_the_run_are_escaped(audit, tmp_path):
    run = run_with(tmp_path / "r", rm=audit)
    next(a for a in run.artifacts if a.path == "rm").path = "<b>rm</b>"
    html = page.render(run)
    assert "<b>" not in html
    assert "<h3>&lt;b&gt;rm&lt;/b&gt;</h3>" in html


def test_manifests_that_hold_something_else_are_passed_over(tmp_path):
    fakerun.stage(tmp_path / "a", "sft", [], 2, metrics={"audit": "soon"})
    assert collect(tmp_path).audits == []
    assert manifest.read(tmp_path / "a")["metrics"] == {"audit": "soon"}


def test_points_lie_where_the_scale_says():
    drawn = [svg.Point(0, 0.0, None, None, 2, "<low>"), svg.Point(1, 1.0, 0.5, 1.0)]
    out = svg.points(
        "t & u", drawn, x=(0, 1), x_marks=[(0, "<a>")], notes=[(1, "<n>")], guide=[(0, 0), (1, 1)],
        counts=[(0, 0.5, 1.0)], x_name="x",
    )  # fmt: skip
    tree = ElementTree.fromstring(out)
    dots = [(float(c.get("cx")), float(c.get("cy")), c.get("class")) for c in tree.iter("circle")]
    left, right, top, floor = 44, 480 - 14, 26, 260 - 48
    assert dots == [(left, floor, "dot c2"), (right, top, "dot c1")]
    paths = {p.get("class"): p.get("d") for p in tree.iter("path")}
    assert paths["curve span c1"] == f"M{right:.1f} {(top + floor) / 2:.1f}V{top:.1f}"
    assert "curve span c2" not in paths
    assert paths["mean"] == f"M{left:.1f} {floor:.1f}L{right:.1f} {top:.1f}"
    (bar,) = tree.iter("rect")
    assert float(bar.get("height")) == pytest.approx(0.18 * (floor - top), abs=0.1)
    assert [t.text or "" for t in tree.iter("title")] == ["<low>", ""]
    assert {"<a>", "<n>", "t & u", "x"} <= {t.text for t in tree.iter("text")}
    assert svg.points("t", [], x=(0, 1), x_marks=[]) == ""
