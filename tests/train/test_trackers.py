"""Trackers: what TensorBoard and W&B are given, that they stay at home, and that a missing one is a sentence."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import pytest

from xwincli import flags
from xwincli.errors import XwinError
from xwincli.stages import sft
from xwincli.train import trackers

TALK = [{"role": "user", "content": "why ?"}, {"role": "assistant", "content": "because ."}]


class Recorder:
    """Records (name, args, kwargs) of every call of every method, on itself and on what calls return."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    def of(self, name: str) -> list[tuple]:
        return [(args, kwargs) for n, args, kwargs in self.calls if n == name]


@pytest.fixture
def fakes(monkeypatch) -> dict[str, Recorder]:
    """Both packages replaced by recorders."""
    found = {"wandb": Recorder(), "torch.utils.tensorboard": Recorder()}
    for name, recorder in found.items():
        module = ModuleType(name)
        module.__getattr__ = recorder.__getattr__
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards, whoever sets it
        monkeypatch.delenv(name)
    return found


def train(policy, tmp_path, name: str, **options):
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    given = {"model": str(policy), "data": [str(tmp_path / "d.jsonl")], "out": str(tmp_path / "model"), "epochs": 3}
    sft.run(flags.build(sft.Config, {**given, "device": "cpu", "dtype": "float32", "track": name, **options}))
    return [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_gets_every_figure_of_every_step(policy, tmp_path, fakes):
    rows = train(policy, tmp_path, "tensorboard")
    fake = fakes["torch.utils.tensorboard"]
    assert fake.of("SummaryWriter") == [((), {"log_dir": str(tmp_path / "runs" / "model"), "purge_step": 1})]
    given = [(k, v, row["step"]) for row in rows for k, v in row.items() if k != "step"]
    assert [args for args, _ in fake.of("add_scalar")] == given
    assert {"loss", "lr", "grad_norm"} <= {args[0] for args, _ in fake.of("add_scalar")}
    assert len(fake.of("flush")) == len(rows) == 3
    assert fake.calls[-1][0] == "close"
    assert fakes["wandb"].calls == []


def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path, fakes):
    tracker = trackers.TensorBoard(tmp_path / "model")
    tracker.log({"step": 7, "loss": 1.0, "note": "text is no figure"})
    assert fakes["torch.utils.tensorboard"].of("SummaryWriter")[0][1]["purge_step"] == 7
    assert [args for args, _ in fakes["torch.utils.tensorboard"].of("add_scalar")] == [("loss", 1.0, 7)]


def test_wandb_stays_offline(policy, tmp_path, fakes, capsys):
    rows = train(policy, tmp_path, "wandb", lr=1e-3)
    fake = fakes["wandb"]
    ((_, given),) = fake.of("init")
    assert (given["mode"], given["name"], given["dir"]) == ("offline", "model", str(tmp_path))
    assert (given["config"]["lr"], given["config"]["epochs"]) == (1e-3, 3)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert fake.of("log") == [(({k: v for k, v in r.items() if k != "step"},), {"step": r["step"]}) for r in rows]
    assert fake.calls[-1][0] == "finish"
    assert "wandb sync" in capsys.readouterr().err


def test_wandb_mode_is_the_users(tmp_path, fakes, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    trackers.Wandb(tmp_path / "model", sft.Config(model="m", out="o"))
    assert fakes["wandb"].of("init")[0][1]["mode"] == "online"
    assert "WANDB_ERROR_REPORTING" not in os.environ
    assert capsys.readouterr().err == "tracking: wandb, online\n"


def test_without_track_nothing_is_imported_or_made(policy, tmp_path, fakes):
    train(policy, tmp_path, "none")
    assert [f.calls for f in fakes.values()] == [[], []]
    assert not (tmp_path / "runs").exists()


def test_only_rank_0_tracks(tmp_path, fakes, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    tracker = trackers.find(tmp_path / "model", sft.Config(model="m", out="o", track="wandb"))
    tracker.log({"step": 1, "loss": 1.0})
    tracker.close()
    assert fakes["wandb"].calls == []


@pytest.mark.parametrize("name,module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_training(policy, tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)  # import raises ModuleNotFoundError
    with pytest.raises(XwinError, match=f"--track {name} needs the package {name}") as e:
        train(policy, tmp_path, name)
    assert e.value.hint == f"pip install {name}"
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]
