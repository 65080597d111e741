"""What a prompt can demand that a program verifies: every kind of check, and when a response meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from xwincli import checks
from xwincli.errors import XwinError
from xwincli.protocols import instructions
from xwincli.protocols.instructions import Follows
from xwincli.records import Asked

TOLERANCE = 1e-6  # how far a number may be off where the check does not say
# the last number of an answer; thousands may be parted by commas, a hyphen between digits is no sign
NUMBER = re.compile(r"(?<!\w)-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|(?<!\w)-?\.[0-9]+")


# -- kinds of checks beside those of checks.py and IFEval


def last_number(text: str) -> float | None:
    """The last number in a text, as GSM8K's answers are read (Cobbe et al. 2021, arXiv 2110.14168); None without."""
    found = NUMBER.findall(text.replace("−", "-"))
    return float(found[-1].replace(",", "")) if found else None


def _exact(check: Mapping[str, Any], at: str) -> Follows:
    value = _text(check, at)
    return lambda text: text.strip() == value.strip()


def _regex(check: Mapping[str, Any], at: str) -> Follows:
    value = _text(check, at)
    try:
        pattern = re.compile(value)
    except re.error as e:
        raise XwinError(f"{at}.value: {value!r} is no regular expression: {e}") from None
    return lambda text: pattern.search(text) is not None


def _numeric(check: Mapping[str, Any], at: str) -> Follows:
    value, tolerance = check.get("value"), check.get("tolerance", TOLERANCE)
    wanted: Any = last_number(value) if isinstance(value, str) else value
    if not _is_number(wanted):
        raise XwinError(f"{at}.value: expected a number, got {value!r}")
    if not _is_number(tolerance) or tolerance < 0:
        raise XwinError(f"{at}.tolerance: expected a number from 0 on, got {tolerance!r}")
    return lambda text: (found := last_number(text)) is not None and abs(found - float(wanted)) <= tolerance


def _json_schema(check: Mapping[str, Any], at: str) -> Follows:
    try:
        module = import_module("jsonschema")
    except ImportError:
        raise XwinError(f"{at}: a json_schema check needs the package jsonschema", "pip install jsonschema") from None
    schema = check.get("value")
    kind = module.validators.validator_for(schema, default=module.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except module.exceptions.SchemaError as e:
        raise XwinError(f"{at}.value: is no JSON schema: {e.message}") from None
    validator = kind(schema)

    def passes(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(instructions.unfenced(text))))
        except (ValueError, RecursionError):
            return False

    return passes


def _text(check: Mapping[str, Any], at: str) -> str:
    value = check.get("value")
    if not isinstance(value, str) or not value.strip():
        raise XwinError(f"{at}.value: expected a text, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: dict[str, Callable[[Mapping[str, Any], str], Follows]] = {
    "exact": _exact,
    "regex": _regex,
    "numeric": _numeric,
    "json_schema": _json_schema,
}


# -- a prompt's demands


@dataclass(frozen=True)
class Demand:
    """One thing a response must do, by the name of its kind."""

    kind: str
    passes: Follows

    def strict(self, text: str) -> bool:
        """True if the text as it stands does; an empty one does nothing."""
        return bool(text.strip()) and self.passes(text)

    def loose(self, text: str) -> bool:
        """True if any of the text's variants does."""
        return any(self.strict(v) for v in variants(text))


def variants(text: str) -> list[str]:
    """A text, without its first line, last line, or both; and each of these without asterisks.

    IFEval's loose criterion (arXiv 2311.07911, section 2.2): an introduction, a closing line and markdown's marks
    are forgiven.
    """
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(v.replace("*", "") for v in cut)]


def demands(row: Asked, where: str, answers: str = "") -> list[Demand]:
    """What a prompt demands: its ``checks``, IFEval's ``instruction_id_list`` with ``kwargs``, its reference.

    Args:
        row: a prompt, or a group that carries what its prompt had.
        where: ``file:line``.
        answers: "exact" or "numeric" to hold responses to the row's reference too.

    Raises:
        XwinError: a kind is unknown or ill-described, the reference is missing, or nothing is demanded.
    """
    found = [_demand(check, f"{where}: field checks[{i}]") for i, check in enumerate(row.checks or [])]
    if "instruction_id_list" in row.extra:
        found += _instructions(row.extra, where)
    if answers:
        if row.reference is None:
            raise XwinError(f"{where}: field reference: is missing", f"--answers {answers} compares with it")
        found.append(Demand(answers, KINDS[answers]({"value": row.reference}, f"{where}: field reference")))
    if not found:
        hint = "checks, instruction_id_list with kwargs, or a reference with --answers exact or numeric"
        raise XwinError(f"{where}: field checks: is missing: nothing can be verified", hint)
    return found


def _demand(check: Any, at: str) -> Demand:
    name = check.get("kind") if isinstance(check, dict) else None
    if not isinstance(name, str):
        raise XwinError(f"{at}: a check is an object with a kind, this is {check!r}")
    if name in KINDS:
        return Demand(name, KINDS[name](check, at))
    if name in checks.KINDS:
        try:
            checks.describe(check)
        except XwinError as e:
            raise XwinError(f"{at}: {e.message}", e.hint) from None
        return Demand(name, lambda text: checks.passes(check, text))
    if ":" in name:
        given = check.get("value") or {}
        if not isinstance(given, dict):
            raise XwinError(f"{at}.value: expected an object with the arguments of {name}, got {given!r}")
        return Demand(name, instructions.bind(name, given, at))
    known = ", ".join([*KINDS, *checks.KINDS])
    raise XwinError(f"{at}: unknown check kind {name!r}", f"known are: {known}, and IFEval's by their own names")


def _instructions(extra: Mapping[str, Any], where: str) -> list[Demand]:
    names, given = extra["instruction_id_list"], extra.get("kwargs")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise XwinError(f"{where}: field instruction_id_list: expected a list of names")
    if not isinstance(given, list) or len(given) != len(names) or not all(isinstance(g, dict) for g in given):
        hint = "IFEval's input has one object of arguments for each instruction"
        raise XwinError(f"{where}: field kwargs: expected a list of {len(names)} objects", hint)
    pairs = enumerate(zip(names, given, strict=True))
    return [Demand(n, instructions.bind(n, g, f"{where}: field instruction_id_list[{i}]")) for i, (n, g) in pairs]
