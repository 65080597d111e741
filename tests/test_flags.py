"""Flags over --config over defaults; what is impossible is refused with the option's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from xwincli import flags, settings
from xwincli.errors import XwinError
from xwincli.settings import flag, group


@dataclass(kw_only=True)
class Config:
    """A config of every kind of option."""

    data: list[str] = flag(["-"], "inputs")
    name: str = flag(help="a name")
    rate: float = flag(1e-3, "rate", low=0.0)
    deep: bool = flag(False, "a switch")
    mode: str = flag("a", "one of", choices=("a", "b"))
    rows: int = flag(8, "rows", execution=True, low=1)
    optim: settings.Optim = group(settings.Optim)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_flag_over_config_over_default(tmp_path):
    file = write(tmp_path, "c.yaml", "name: x\nmax-tokens-per-row: 64\nrows: 3\nmode: b\n")
    config = flags.build(Config, {"rows": 5}, file)
    assert (config.name, config.rows, config.mode) == ("x", 5, "b")
    assert config.optim.max_tokens_per_row == 64
    assert config.data == ["-"]
    assert config.optim.batch == 128


@pytest.mark.parametrize(
    "text,said",
    [
        ("name: x\nlearning: 1\n", "unknown option 'learning'"),
        ("name: x\nrows: three\n", "rows is 'three'"),
        ("name: x\nrows: 0\n", "rows is 0"),
        ("name: x\nrate: .nan\n", "rate is not a number"),
        ("name: x\nname: y\n", "given twice"),
        ("- a\n", "a table of options"),
        ("name: [x\n", "not a valid config"),
        ("name: no\n", "name is False"),
        ("name: !!python/object/apply:os.getcwd []\n", "not a valid config"),
    ],
)
def test_a_bad_config_names_the_file_and_the_option(tmp_path, text, said):
    file = write(tmp_path, "c.yaml", text)
    with pytest.raises(XwinError) as e:
        flags.build(Config, {}, file)
    assert "c.yaml" in e.value.message
    assert said in e.value.message


def test_yaml_floats_without_a_dot_are_numbers(tmp_path):
    assert flags.build(Config, {}, write(tmp_path, "c.yaml", "name: x\nrate: 1e-5\n")).rate == 1e-5


def test_json_configs(tmp_path):
    assert flags.build(Config, {}, write(tmp_path, "c.json", '{"name": "x", "deep": true}')).deep
    with pytest.raises(XwinError, match=r"c\.json"):
        flags.build(Config, {}, write(tmp_path, "c.json", '{"name": "x",}'))


def test_a_required_option_and_a_choice():
    with pytest.raises(XwinError, match="--name is required"):
        flags.build(Config, {})
    with pytest.raises(XwinError, match="--mode is 'c'"):
        flags.build(Config, {"name": "x", "mode": "c"})


def test_the_command_line_parses_every_kind():
    parse = flags.command("t", Config, "doc")
    config = parse(["--data", "a", "--data", "b", "--name", "n", "--deep", "--rate", "0.5", "--batch", "4"])
    assert (config.data, config.name, config.deep, config.rate, config.optim.batch) == (["a", "b"], "n", True, 0.5, 4)
    assert parse(["--help"]) is None
    with pytest.raises(SystemExit) as e:
        parse(["--unheard-of"])
    assert e.value.code == 2


def test_values_tell_decisive_options_from_execution_only_ones():
    config = flags.build(Config, {"name": "x"})
    decisive = settings.values(config, execution=False)
    assert "rows" not in decisive
    assert "max_tokens_per_row" not in decisive
    assert decisive["batch"] == 128
    assert set(settings.values(config, execution=True)) == {"rows", "max_tokens_per_row"}
