"""Two processes do what one does: the same losses, the same weights, with and without DeepSpeed, and after a stop."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import xwincli
from xwincli import flags, manifest, models
from xwincli.errors import XwinError
from xwincli.settings import Cluster
from xwincli.train import parallel

WORDS = ["tea", "rain", "fox", "moon", "river", "dog", "sun", "coffee", "light", "water"]
SMALL = {"device": "cpu", "dtype": "float32", "lr": 1e-3, "batch": 3, "epochs": 2, "max_tokens_per_row": 60}
FEW = {"batch": 1, "limit": 4}  # a step of one item: one of two ranks has an empty row
BAD = {"stage": "sft", "bad": True, "error": "step 1: the gradient is nan (of "}
BAD_ZERO = {**BAD, "error": " (among "}  # DeepSpeed looks at no row alone

JOBS: dict[str, dict] = {  # name -> stage, what differs from SMALL; the stopped ones go on under the same name
    "sft": {"stage": "sft"},
    "sft-few": {"stage": "sft", "options": FEW},
    "sft-valid": {"stage": "sft", "options": {"valid": 0.3, "keep_best": True, "batch": 2}},
    "sft-3-valid": {"stage": "sft", "options": {"zero": 3, "valid": 0.3, "valid_every": 2, "batch": 2}},
    "dpo": {"stage": "dpo"},
    "rm": {"stage": "train_rm"},
    "sft-1": {"stage": "sft", "options": {"zero": 1}},
    "sft-2-offload": {"stage": "sft", "options": {"zero": 2, "offload": "optimizer"}},
    "sft-3": {"stage": "sft", "options": {"zero": 3}},
    "sft-3-few": {"stage": "sft", "options": {"zero": 3, **FEW}},
    "sft-3-lora": {"stage": "sft", "options": {"zero": 3, "lora_r": 2}},
    "dpo-3-offload": {"stage": "dpo", "options": {"zero": 3, "offload": "all"}},
    "rm-3": {"stage": "train_rm", "options": {"zero": 3}},
    "sft-2-bf16": {"stage": "sft", "options": {"zero": 2, "dtype": "bfloat16"}},
    "on-plain": {"stage": "sft", "stop": 4},
    "on-2": {"stage": "sft", "stop": 4, "options": {"zero": 2}},
    "on-3": {"stage": "sft", "stop": 4, "options": {"zero": 3}},
    "left-plain": {"stage": "sft", "stop": 4},
    "left-2": {"stage": "sft", "stop": 4, "options": {"zero": 2}},
    "bad": {**BAD, "options": {}},
    "bad-2": {**BAD_ZERO, "options": {"zero": 2}},
    "bad-2-bf16": {**BAD_ZERO, "options": {"zero": 2, "dtype": "bfloat16"}},
    "bad-3": {**BAD_ZERO, "options": {"zero": 3}},
}
AGAIN = [
    ("on-plain", {}),
    ("on-2", {}),
    ("on-3", {}),
    ("left-plain", {"error": "was made with no --zero", "options": {"zero": 2}}),
    ("left-2", {"error": "was made with --zero 2 and 2 processes", "options": {"zero": 3}}),
]


def data(folder: Path) -> dict[str, str]:
    """Conversations and pairs of unequal lengths, so that ranks have unequal counts of tokens."""
    turn = lambda role, text: {"role": role, "content": text}
    talks, pairs = [], []
    for i, w in enumerate(WORDS):
        asked = turn("user", f"about {w} ?")
        talks.append({"messages": [asked, turn("assistant", f"the {w} ." + " so" * (i % 4))] * (1 + i % 2)})
        answers = {
            "chosen": [turn("assistant", f"the {w} shines .")],
            "rejected": [turn("assistant", "no" * (1 + i % 4))],
        }
        pairs.append({"prompt": [asked], **answers})
    files = {"sft": folder / "talks.jsonl", "dpo": folder / "pairs.jsonl"}
    for file, rows in zip(files.values(), (talks, pairs), strict=True):
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {name: str(file) for name, file in files.items()}


class Runs:
    """The folders that two processes made, and those that one made of the same options."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.policy, self.data = folder, policy, data(folder)
        self.singles: dict[str, Path] = {}

    def options(self, name: str, out: Path, **more) -> dict:
        stage, own = JOBS[name]["stage"], JOBS[name].get("options", {})
        rows = self.data.get(stage, self.data["dpo"])
        if stage == "dpo":  # the first run makes the file, the second uses it
            own = {**own, "reference": str(self.folder / "reference.jsonl")}
        return {**SMALL, **own, **more, "model": str(self.policy), "data": [rows], "out": str(out)}

    def two(self) -> None:
        jobs = [{**job, "options": self.options(name, self.folder / name)} for name, job in JOBS.items()]
        for name, more in AGAIN:
            options = self.options(name, self.folder / name, **more.get("options", {}))
            jobs.append({"stage": JOBS[name]["stage"], **more, "options": options})
        file = self.folder / "jobs.json"
        file.write_text(json.dumps(jobs))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = str(Path(__file__).with_name("ranks.py"))
        done = subprocess.run([*command, script, str(file)], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-6000:]
        self.said = done.stderr

    def one(self, name: str) -> Path:
        """The same as ``name`` in this process, without DeepSpeed."""
        out = self.folder / f"single-{name}"
        own = self.options(name, out).items()
        options = {k: v for k, v in own if k not in ("zero", "offload", "reference")}
        key = json.dumps([JOBS[name]["stage"], {**options, "out": ""}], sort_keys=True)
        if key not in self.singles:
            torch.manual_seed(0)
            module = import_module(f"xwincli.stages.{JOBS[name]['stage']}")
            module.run(flags.build(module.Config, options))
            self.singles[key] = out
        return self.singles[key]


@pytest.fixture(scope="module")
def runs(policy, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("ranks"), policy)
    runs.two()
    return runs


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


EXACT = [name for name in JOBS if "bf16" not in name and "left" not in name and "bad" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_two_processes_equal_one(runs, name):
    one, two = runs.one(name), runs.folder / name
    assert len(log(one)) == len(log(two)) >= 6
    for a, b in zip(log(one), log(two), strict=True):
        for figure in a.keys() - {"seconds"}:
            assert b[figure] == pytest.approx(a[figure], rel=2e-5, abs=1e-5), (a["step"], figure)
    before, after = tensors(one), tensors(two)
    assert before.keys() == after.keys()
    for n in before:
        assert after[n].shape == before[n].shape
        torch.testing.assert_close(after[n], before[n], rtol=0, atol=1e-5, msg=n)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft-3", "sft-3-lora", "dpo-3-offload"])
def test_plain_transformers_opens_what_zero_3_saved(runs, name):
    model, report = AutoModelForCausalLM.from_pretrained(runs.folder / name, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids = torch.tensor([[5, 6, 7, 8]])
    other = AutoModelForCausalLM.from_pretrained(runs.one(name))
    torch.testing.assert_close(model(ids).logits, other(ids).logits, atol=1e-3, rtol=0)
    start = AutoModelForCausalLM.from_pretrained(runs.policy)
    assert (model(ids).logits - start(ids).logits).abs().max() > 0.05


@pytest.mark.slow
def test_plain_transformers_opens_the_reward_model_that_zero_3_saved(runs):
    ids = torch.tensor([[5, 6, 7, 8]])
    scores = [
        AutoModelForSequenceClassification.from_pretrained(f)(ids).logits.item()
        for f in (runs.folder / "rm-3", runs.one("rm"))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert "scores agree" in runs.said
    assert (
        manifest.read(runs.folder / "rm-3")["metrics"]["valid_accuracy"]
        == manifest.read(runs.one("rm"))["metrics"]["valid_accuracy"]
    )


@pytest.mark.slow
def test_bfloat16_follows_the_dtype(runs):
    kinds = {t.dtype for t in tensors(runs.folder / "sft-2-bf16").values()}
    assert kinds == {torch.bfloat16}
    for a, b in zip(log(runs.one("sft")), log(runs.folder / "sft-2-bf16"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)
        assert b["loss"] != a["loss"]


@pytest.mark.slow
def test_a_stopped_run_went_on_where_it_was(runs):
    for name in ("on-plain", "on-2", "on-3"):
        assert [r["step"] for r in log(runs.folder / name)] == list(range(1, 9))
        assert f"{name}: going on after step 3" in runs.said
        assert not (runs.folder / f"{name}.partial").exists()


@pytest.mark.slow
def test_one_process_goes_on_with_the_checkpoint_of_two_but_not_with_zeros(runs, capsys):
    sft = import_module("xwincli.stages.sft")
    sft.run(flags.build(sft.Config, runs.options("left-plain", runs.folder / "left-plain")))
    assert "going on after step 3" in capsys.readouterr().err
    for n, t in tensors(runs.one("sft")).items():
        torch.testing.assert_close(tensors(runs.folder / "left-plain")[n], t, rtol=0, atol=1e-5)
    options = runs.options("left-2", runs.folder / "left-2")
    del options["zero"]
    with pytest.raises(XwinError, match="made with --zero 2 and 2 processes") as e:
        sft.run(flags.build(sft.Config, options))
    assert "--force" in e.value.hint


@pytest.mark.slow
def test_each_thing_is_said_once(runs):
    assert runs.said.count("saved ") == len(EXACT) + 1
    assert "Traceback" not in runs.said
    assert "FutureWarning" not in runs.said
    assert runs.said.count("reference log-probabilities of 10 pairs from") == 1
    assert runs.said.count("kept ") == 1
    assert len((runs.folder / "reference.jsonl").read_text().splitlines()) == 10


def test_one_process_never_imports_deepspeed(policy, tmp_path):
    code = "import sys\nfrom xwincli.cli import main\nmain(sys.argv[1:])\nprint(list(sys.modules))"
    options = ["--device", "cpu", "--dtype", "float32", "--data", data(tmp_path)["sft"], "--limit", "2"]
    command = [sys.executable, "-c", code, "sft", "--model", str(policy), *options, "--out", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = set(ast.literal_eval(done.stdout))
    assert {m for m in found if m.split(".")[0] == "deepspeed"} == set()
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_what_deepspeed_is_told():
    model = AutoModelForCausalLM.from_config(LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=8))
    place = models.Place(torch.device("cpu"), torch.bfloat16)
    tell = lambda **options: parallel.deepspeed_options(model, Cluster(**options), 0.5, place)
    zero = lambda **options: tell(**options)["zero_optimization"]
    assert zero(zero=1) == {"stage": 1}
    assert zero(zero=2, offload="optimizer") == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert zero(zero=3)["stage3_param_persistence_threshold"] < 32 * 32, "every matrix is shared out"
    assert zero(zero=3, offload="all").keys() >= {"offload_optimizer", "offload_param"}
    assert tell(zero=1)["gradient_clipping"] == 0.5
    assert tell(zero=1)["bf16"]["enabled"] is True


def test_zero_3_refuses_a_model_that_takes_a_forward_a_response():
    """Processes would gather its weights unequally often, and wait for each other for ever."""
    model = torch.nn.Linear(2, 2)
    model.xwin_branches = False
    opt = torch.optim.AdamW(model.parameters())
    with pytest.raises(XwinError, match="may share prompts"):
        parallel.Zero(opt, [], 1.0, model, Cluster(zero=3), models.Place(torch.device("cpu"), torch.float32))


def test_deepspeed_and_torch_distributed_live_in_one_file():
    src = Path(xwincli.__file__).parent
    for file in src.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        for n in nodes:
            if isinstance(n, ast.ImportFrom):
                names |= {n.module or "", *(f"{n.module}.{a.name}" for a in n.names)}
        if any(n.startswith(("deepspeed", "torch.distributed")) for n in names):
            assert file.relative_to(src).as_posix() == "train/parallel.py"
