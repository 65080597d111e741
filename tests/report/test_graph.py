"""Layers of the graph: below every source, trunks for long edges, nothing on top of anything."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from xwincli.report import graph
from xwincli.report.collect import Artifact, link


def made(*facts: tuple[str, list[str]]) -> list[Artifact]:
    artifacts = [
        Artifact(path, {"stage": "s", "seconds": 3, "inputs": [{"path": i} for i in inputs]}) for path, inputs in facts
    ]
    link(artifacts)
    return artifacts


CHAIN = made(
    ("pairs.jsonl", ["run/prompts.jsonl", "base"]),
    ("rm", ["/elsewhere/run/pairs.jsonl", "base"]),
    ("scored.jsonl", ["run/pairs.jsonl", "run/rm"]),
    ("ppo", ["late.jsonl", "run/scored.jsonl", "run/rm/model.safetensors"]),
)


def test_inputs_find_their_artifacts_wherever_the_run_was() -> None:
    assert [a.sources for a in CHAIN] == [
        ["run/prompts.jsonl", "base"],
        ["pairs.jsonl", "base"],
        ["pairs.jsonl", "rm"],
        ["late.jsonl", "scored.jsonl", "rm"],
    ]


def test_depths() -> None:
    assert graph.depths(CHAIN) == {
        "run/prompts.jsonl": 0, "base": 0, "pairs.jsonl": 1, "rm": 2, "scored.jsonl": 3, "late.jsonl": 3, "ppo": 4,
    }  # fmt: skip


def test_a_circle_of_manifests_ends() -> None:
    assert set(graph.depths(made(("a.jsonl", ["b.jsonl"]), ("b.jsonl", ["a.jsonl"])))) == {"a.jsonl", "b.jsonl"}


def test_steps_join_neighbouring_layers_and_boxes_keep_apart() -> None:
    x, steps = graph.place(CHAIN)
    assert all(two[1] - one[1] == 1 for one, two in steps)
    assert (("base", 1), ("rm", 2)) in steps and (("base", 0), ("base", 1)) in steps
    depth = graph.depths(CHAIN)
    for d in range(5):
        boxes = sorted(x[n, d] for n in depth if depth[n] == d)
        assert all(b - a >= graph.WIDTH for a, b in pairwise(boxes))


def test_drawn_with_every_name_escaped() -> None:
    out = graph.draw(made(("<a>.jsonl", ["in & out"])))
    ElementTree.fromstring(out)
    assert "&lt;a&gt;.jsonl" in out and "in &amp; out" in out and "s · 3s" in out
    assert graph.draw([]) == ""
