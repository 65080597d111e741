"""The house as docs/architecture.md draws it: who may import whom, what start-up costs, how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xwincli
from xwincli.cli import STAGES

SRC = Path(xwincli.__file__).parent
FILES = {p.relative_to(SRC).as_posix(): ast.parse(p.read_text()) for p in SRC.rglob("*.py")}

GROUND = {
    "checks",
    "errors",
    "settings",
    "console",
    "records",
    "jsonl",
    "sources",
    "strict",
    "manifest",
    "journal",
    "index",
    "shards",
    "formats",
    "contamination",
}
MODELS = {"chat", "memory", "models", "norms", "weights", "rows", "attention", "scoring", "states", "checkpoint"}
MAY_IMPORT = {  # part -> the parts it may import besides itself
    "cli": {"flags", "errors"},
    "flags": {"errors"},
    "launch": GROUND | {"train"},
    "stages": GROUND
    | MODELS
    | {"launch", "engines", "judges", "train", "metrics", "protocols", "report", "lab", "selection"},
    "selection": GROUND,
    "protocols": GROUND | {"judges", "metrics"},
    "judges": GROUND | MODELS | {"engines", "lab"},
    "train": GROUND | MODELS | {"engines"},
    "engines": GROUND | MODELS,
    "report": GROUND | {"metrics"},
    "metrics": {"errors"},
    "lab": GROUND,
    **dict.fromkeys(MODELS, GROUND | MODELS),
    **dict.fromkeys(GROUND, GROUND),
}
HEAVY = ("torch", "transformers", "datasets", "openai", "vllm", "deepspeed", "peft", "scipy", "sklearn")


def part(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xwincli":
            names = node.module.split(".")[1:2] or [a.name for a in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("xwincli."))
    return found - {"__version__"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_downwards(name):
    here = part(name)
    if here in ("__init__", "__main__"):
        return
    assert imports(FILES[name]) - MAY_IMPORT[here] - {here} == set()


@pytest.mark.parametrize("name", sorted(n for n in FILES if n.startswith("stages/")))
def test_stages_never_import_each_other(name):
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "xwincli.stages"
            assert not (node.module or "").startswith("xwincli.stages.")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_fits_a_head(name):
    assert len((SRC / name).read_text().splitlines()) <= 400


def test_one_fact_one_file():
    """typer in flags; DeepSpeed nowhere yet; data files are opened for writing in jsonl alone (and its kin)."""
    for name, tree in FILES.items():
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert ("typer" in names) == (name == "flags.py"), name
        if "jsonlines" in names:
            assert name == "jsonl.py"
        if "datasets" in names:
            assert name == "sources.py"


def loaded_after(*argv: str) -> set[str]:
    code = (
        "import sys\nfrom xwincli.cli import main\n"
        f"try: main({list(argv)!r})\nexcept SystemExit: pass\n"
        "print('\\nLOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("LOADED")[1].split())


def test_the_root_page_loads_nothing_heavy():
    assert not loaded_after("--help") & {*HEAVY, "typer", "rich", "numpy"}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_page_loads_nothing_heavy(stage):
    assert not loaded_after(*stage.split(), "--help") & set(HEAVY)


def test_every_stage_has_a_docstring_config_and_run():
    from importlib import import_module

    for module, _ in STAGES.values():
        m = import_module(module)
        assert m.__doc__
        assert m.Config.__doc__
        assert m.run.__doc__
