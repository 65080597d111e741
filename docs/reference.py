"""Print the reference of every stage's options as Markdown: `make docs` writes it to docs/cli.md."""

from __future__ import annotations

import dataclasses
import typing
from importlib import import_module

from xwincli.cli import STAGES
from xwincli.flags import options


def main() -> None:
    """One section a stage, one table row an option, from the config dataclasses themselves."""
    print("# Command-line reference\n\nWritten by `make docs` from the stages' configs; do not edit.")
    for name, (module_name, _) in STAGES.items():
        module = import_module(module_name)
        print(f"\n## xwin {name}\n\n{module.__doc__.strip()}\n\n| option | default | what |\n|---|---|---|")
        for _, field, hint in options(module.Config):
            print(row(field, hint))


def row(field: dataclasses.Field[typing.Any], hint: typing.Any) -> str:
    """One option as a table row."""
    name = (field.metadata.get("name") or field.name).replace("_", "-")
    shown = name.upper() if field.metadata.get("positional") else f"--{name}"
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else "required"
    if isinstance(default, list):
        default = " ".join(default)
    if hint is bool:
        default = "yes" if default else "no"
    choices = field.metadata.get("choices")
    text = field.metadata.get("help", "") + (f" (one of {', '.join(choices)})" if choices else "")
    return f"| `{shown}` | {f'`{default}`' if default != '' else ''} | {text} |".replace("||", "\\|\\|")


if __name__ == "__main__":
    main()
