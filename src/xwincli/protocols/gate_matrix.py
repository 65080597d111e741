"""A table of options in which lists mean alternatives, as one set of options for every combination."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from xwincli.errors import USAGE, XwinError


def _table(file: str) -> dict[str, Any]:
    """The file's table; a key given twice is refused (PyYAML keeps the last). JSON is YAML."""
    import yaml

    try:
        text = Path(file).read_text(encoding="utf-8")
        node, value = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except OSError as e:
        raise XwinError(f"{file}: cannot read the matrix: {e.strerror}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise XwinError(f"{file}: not a valid matrix: {' '.join(str(e).split())}") from e
    if not isinstance(value, dict) or not value or node is None:
        raise XwinError(f"{file}: a matrix is a table of options", "write `model: [base, tuned]`")
    keys = [str(key.value) for key, _ in node.value]
    if twice := next((k for k in keys if keys.count(k) > 1), None):
        raise XwinError(f"{file}: field {twice}: stands twice")
    return {str(k).replace("-", "_"): v for k, v in value.items()}


def read(file: str, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every combination by its name, made of the values that differ: ``chat-tuned``.

    Args:
        file: YAML or JSON, an option's name -> a value, or a list of alternatives (itself a list where the option is).
        options: the command's own, for whatever the file does not name.

    Raises:
        XwinError: an option is unknown or without alternatives, or two combinations have one name.
    """
    table = _table(file)
    if unknown := sorted(set(table) - set(options)):
        raise XwinError(f"{file}: field {unknown[0]}: is no option of xwin eval gate", "see xwin eval gate --help")
    if inner := sorted(set(table) & {"matrix", "jobs", "out", "junit", "save_baseline"}):
        raise XwinError(
            f"{file}: field {inner[0]}: is the whole matrix's", f"give --{inner[0].replace('_', '-')}", USAGE
        )
    if empty := next((k for k, v in table.items() if v == []), None):
        raise XwinError(f"{file}: field {empty}: there are no alternatives")
    alternatives = {k: v if isinstance(v, list) else [v] for k, v in table.items()}
    found: dict[str, dict[str, Any]] = {}
    for values in product(*alternatives.values()):
        chosen = dict(zip(alternatives, values, strict=True))
        parts = [_short(v) for k, v in chosen.items() if len(alternatives[k]) > 1]
        name = "-".join(parts) or "gate"
        if name in found:
            raise XwinError(f"{file}: two gates are called {name!r}", "give files and folders different names")
        found[name] = {**options, **chosen}
    return found


def _short(value: Any) -> str:
    """A value as part of a file's name: a path's last part up to its first dot."""
    first = value[0] if isinstance(value, list) and value else value
    return Path(str(first)).name.split(".")[0] if isinstance(first, str) else str(first)
