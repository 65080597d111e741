"""Config dataclass to command line: flag over ``--config`` file over default. typer lives here alone."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from xwincli.errors import USAGE, XwinError

UsageError: Any = typer.BadParameter.__base__  # click's, or typer's own copy of click: versions differ


def options(config: type) -> list[tuple[tuple[str, ...], dataclasses.Field[Any], Any]]:
    """Every option of a config class as (path through groups, field, type)."""
    hints = typing.get_type_hints(config)
    found: list[tuple[tuple[str, ...], dataclasses.Field[Any], Any]] = []
    for f in dataclasses.fields(config):
        if f.metadata.get("group"):
            found += [((f.name, *path), leaf, hint) for path, leaf, hint in options(hints[f.name])]
        else:
            found.append(((f.name,), f, hints[f.name]))
    return found


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _parameter(f: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The typer parameter of one option. Its own default is None, which says "not given"."""
    default, text = _default(f), str(f.metadata.get("help", ""))
    if choices := f.metadata.get("choices"):
        text += f" [{'|'.join(choices)}]"
    if default is dataclasses.MISSING:
        text += " (required)"
    elif default not in ("", [], None, False):
        text += f" [default: {' '.join(map(str, default)) if isinstance(default, list) else default}]"
    bare = next((a for a in typing.get_args(hint) if a is not type(None)), hint) if _optional(hint) else hint
    if f.metadata.get("positional"):
        info: Any = typer.Argument(help=text, show_default=False)
    else:
        flag = "--" + (f.metadata.get("name") or f.name).replace("_", "-")
        names = [f"{flag}/--no-{flag[2:]}"] if bare is bool else [flag]
        info = typer.Option(*names, help=text, show_default=False)
    return inspect.Parameter(
        f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[bare | None, info]
    )


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file of options; refuses what is not one flat table."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            import yaml

            data = yaml.load(text, Loader=_unique_keys_loader())
    except OSError as e:
        raise XwinError(f"{path}: cannot read the config: {e.strerror}") from e
    except ValueError as e:
        raise XwinError(f"{path}: not a valid config: {' '.join(str(e).split())}") from e
    if not isinstance(data, dict):
        raise XwinError(f"{path}: a config is a table of options, this is {type(data).__name__}", "write `lr: 2e-5`")
    return {str(k).replace("-", "_"): v for k, v in data.items()}


def _unique_keys_loader() -> Any:
    """A safe YAML loader that refuses a key given twice (PyYAML would keep the last)."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            if twice := next((k for i, k in enumerate(keys) if k in keys[:i]), None):
                raise ValueError(f"line {node.start_mark.line + 1}: the key {twice!r} is given twice")
            return super().construct_mapping(node, deep)

        def get_single_data(self) -> Any:
            try:
                return super().get_single_data()
            except yaml.YAMLError as e:
                raise ValueError(str(e)) from e

    return Loader


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """A config file's value as the option's type, or a sentence that says why not."""
    import msgspec

    bare = next((a for a in typing.get_args(hint) if a is not type(None)), hint) if _optional(hint) else hint
    if bare is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            raise XwinError(f"{where} should be a number, this is {value!r}") from None
    if typing.get_origin(bare) is list and isinstance(value, str):
        value = [value]
    try:
        return msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError as e:
        raise XwinError(f"{where} is {value!r}: {e}") from e


def _check(value: Any, f: dataclasses.Field[Any], where: str) -> None:
    choices, low, high = (f.metadata.get(k) for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise XwinError(f"{where} is {value!r}", f"use one of: {', '.join(choices)}", USAGE)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value != value:
            raise XwinError(f"{where} is not a number", "", USAGE)
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise XwinError(f"{where} is {value}", f"it must be {bounds}", USAGE)


def build(config: type, given: dict[str, Any], file: Path | None = None) -> Any:
    """Make a config: ``given`` flags over the options of ``file`` over defaults.

    Raises XwinError for an unknown, missing or out-of-range option.
    """
    leaves = options(config)
    table = read_config(file) if file else {}
    known = {leaf.name for _, leaf, _ in leaves}
    if unknown := sorted(set(table) - known):
        raise XwinError(f"{file}: unknown option {unknown[0]!r}", f"known are: {', '.join(sorted(known))}")
    chosen: dict[tuple[str, ...], Any] = {}
    for path, leaf, hint in leaves:
        name = (leaf.metadata.get("name") or leaf.name).replace("_", "-")
        where = name if leaf.metadata.get("positional") else f"--{name}"
        if given.get(leaf.name) not in (None, [], ()):
            value = given[leaf.name]
        elif leaf.name in table:
            where = f"{file}: {leaf.name}"
            value = _coerce(table[leaf.name], hint, where)
        elif (value := _default(leaf)) is dataclasses.MISSING:
            raise XwinError(f"{where} is required", leaf.metadata.get("help", ""), USAGE)
        _check(value, leaf, where)
        chosen[path] = list(value) if isinstance(value, tuple) else value
    return _assemble(config, chosen)


def _assemble(config: type, chosen: dict[tuple[str, ...], Any]) -> Any:
    hints = typing.get_type_hints(config)
    arguments = {}
    for f in dataclasses.fields(config):
        if f.metadata.get("group"):
            inner = {path[1:]: v for path, v in chosen.items() if path[0] == f.name}
            arguments[f.name] = _assemble(hints[f.name], inner)
        else:
            arguments[f.name] = chosen[(f.name,)]
    return config(**arguments)


def command(name: str, config: type, doc: str) -> Callable[[list[str]], Any | None]:
    """The command line of one stage: a function from ``argv`` to its config.

    It returns None when the arguments only asked for help, and exits 2 on a usage error.
    """
    built: list[Any] = []

    def call(**given: Any) -> None:
        file = given.pop("config", None)
        built.append(build(config, given, file))

    parameters = [_parameter(leaf, hint) for _, leaf, hint in options(config)]
    text = "a YAML or JSON file of these options; flags win over it"
    option = typer.Option("--config", help=text, show_default=False)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters.append(inspect.Parameter("config", kind, default=None, annotation=Annotated[Path | None, option]))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command(help=doc)(call)

    def parse(argv: list[str]) -> Any | None:
        from typer.rich_utils import rich_format_error

        built.clear()
        try:
            app(args=argv, prog_name=f"xwin {name}", standalone_mode=False)
        except UsageError as e:
            rich_format_error(e)
            raise SystemExit(USAGE) from None
        return built[0] if built else None

    return parse
