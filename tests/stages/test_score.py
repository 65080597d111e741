"""`xwin score`: several reward models at once, shards, memory that runs out, scores equal plain transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import micro
from xwincli import flags, manifest, models, scoring
from xwincli.errors import XwinError
from xwincli.stages import score

TEXTS = ["rain", "tea and coffee", "the moon", "a quick brown fox", "light of the sun"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reward models, the second of another family, and groups."""
    here = tmp_path_factory.mktemp("score")
    for name, family, seed in (("rm-a", "llama", 0), ("rm-b", "qwen2", 1)):
        micro.policy(here / f"{name}-base", seed=seed, family=family)
        models.save(models.new_reward(str(here / f"{name}-base"), models.CPU, seed), here / name)
    with (here / "g.jsonl").open("w") as f:
        for i in range(7):
            prompt = [{"role": "user", "content": f"write about {TEXTS[i % 5]} . " * (1 + i % 3)}]
            responses = [{"text": f"{a} and {TEXTS[i % 5]}", "finish": "stop"} for a in TEXTS]
            responses.append({"text": "the mo", "finish": "length"})
            f.write(json.dumps({"kind": "group", "id": f"g{i}", "prompt": prompt, "responses": responses}) + "\n")
    return here


def run(folder: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    given = {"data": [str(folder / "g.jsonl")], "out": str(out), "rm": [str(folder / "rm-a")], "device": "cpu"}
    score.run(flags.build(score.Config, {**given, "dtype": "float32", **more}))
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def scores(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [r["scores"][name] for row in rows for r in row["responses"]]


@pytest.mark.parametrize("name", ["rm-a", "rm-b"])
def test_scores_are_plain_transformers_one_by_one(folder, tmp_path, name):
    rows = run(folder, tmp_path / "s.jsonl", rm=[str(folder / name)])
    loaded = models.load_reward(str(folder / name), models.CPU)
    wanted = []
    for row in rows:
        for r in row["responses"]:
            prompt, answer = loaded.template.response_ids(row["prompt"], r["text"], r["finish"] != "length", True)
            with torch.no_grad():
                states = loaded.model.model(torch.tensor([prompt + answer]), use_cache=False).last_hidden_state
                wanted.append(float(loaded.model.score(states[0, -1])))
    assert scores(rows, "rm") == pytest.approx(wanted, abs=1e-4)
    assert len(set(wanted)) > 30


@pytest.mark.parametrize(("way", "of"), [("mean", lambda a, b: (a + b) / 2), ("min", min)])
def test_several_models_are_kept_apart_and_combined(folder, tmp_path, way, of):
    a, b = (scores(run(folder, tmp_path / f"{n}.jsonl", rm=[str(folder / n)]), "rm") for n in ("rm-a", "rm-b"))
    both = [f"first={folder / 'rm-a'}", str(folder / "rm-b")]
    rows = run(folder, tmp_path / "both.jsonl", rm=both, combine=way, name="all")
    assert scores(rows, "first") == pytest.approx(a, abs=1e-5)
    assert scores(rows, "rm-b") == pytest.approx(b, abs=1e-5)
    assert scores(rows, "all") == pytest.approx([of(x, y) for x, y in zip(a, b, strict=True)], abs=2e-6)
    assert rows[0]["scorers"]["all"] == f"reward models first, rm-b: {way}"
    kept = run(folder, tmp_path / "apart.jsonl", rm=both)
    assert set(kept[0]["responses"][0]["scores"]) == {"first", "rm-b"}
    first, other = (manifest.read(tmp_path / f"{n}.jsonl") for n in ("both", "apart"))
    assert first and other and first["key"] != other["key"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"rm": ["rm-a", "x/rm-a"]}, "two scores would be named 'rm-a'"),
        ({"rm": ["rm=rm-a", "rm-b"], "combine": "mean"}, "two scores would be named 'rm'"),
        ({"rm": ["rm-a"], "combine": "min"}, "needs several --rm"),
    ],
)
def test_names_that_clash_are_refused(folder, tmp_path, more, text):
    with pytest.raises(XwinError, match=text):
        run(folder, tmp_path / "s.jsonl", **more)


def test_shards_join_to_the_scores_of_one_process(folder, tmp_path):
    whole = run(folder, tmp_path / "whole.jsonl")
    for shard in ("2/3", "3/3", "1/3"):
        assert not (tmp_path / "s.jsonl").exists()
        run(folder, tmp_path / "s.jsonl", shard=shard)
    joined = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [r["id"] for r in joined] == [r["id"] for r in whole]
    assert scores(joined, "rm") == pytest.approx(scores(whole, "rm"), abs=1e-5)


def test_where_memory_runs_out_rows_are_halved_and_the_scores_are_the_same(folder, tmp_path, monkeypatch, capsys):
    whole = scores(run(folder, tmp_path / "whole.jsonl"), "rm")
    sizes, plain = [], scoring._rows

    def small(loaded, branches, capacity, work):
        sizes.append(capacity)
        if capacity > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(loaded, branches, capacity, work)

    monkeypatch.setattr(scoring, "_rows", small)
    found = scores(run(folder, tmp_path / "s.jsonl", max_tokens_per_row=1024, window=3), "rm")
    assert found == pytest.approx(whole, abs=1e-5)
    assert sizes == [1024, 512, 256, 256, 256]
    assert "a row of 1024 tokens does not fit into memory; going on with 512" in capsys.readouterr().err
    monkeypatch.setattr(scoring, "_rows", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(XwinError, match="memory runs out at a row of"):
        run(folder, tmp_path / "t.jsonl")
    monkeypatch.setattr(scoring, "_rows", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(folder, tmp_path / "u.jsonl")
