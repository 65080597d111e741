"""Which variables a chat template reads, and their values from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from xwincli.errors import USAGE, XwinError


def parse_arguments(given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` arguments: true, false and none in any case, numbers and JSON as such, all else is text."""
    words = {"true": True, "false": False, "null": None, "none": None}  # Jinja takes the text "False" for true
    found: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.isidentifier():
            raise XwinError(f"--template-arg is {one!r}", "write KEY=VALUE, such as enable_thinking=false", USAGE)
        if key in found:
            raise XwinError(f"--template-arg gives {key} twice", "leave one of them out", USAGE)
        try:
            found[key] = words[text.lower()] if text.lower() in words else json.loads(text, parse_constant=str)
        except ValueError:
            found[key] = text
    return found


@cache
def variables(template: str) -> frozenset[str]:
    """The variables a chat template reads that a user may set.

    Not the messages, special tokens and functions that every template is given, nor names that the template sets
    itself without asking first whether they are there (as it asks with ``date_string is defined``).
    """
    import jinja2
    from jinja2 import meta, nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # parses; renders nothing
    source = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)  # a tag that transformers adds
    try:
        tree = environment.parse(source)
    except jinja2.TemplateSyntaxError as e:
        raise XwinError(f"the chat template is not valid Jinja: line {e.lineno}: {e.message}") from e
    names = meta.find_undeclared_variables(tree)
    written = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "store"}
    asked = {t.node.name for t in tree.find_all(nodes.Test) if t.name == "defined" and isinstance(t.node, nodes.Name)}
    ours = {"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now"}
    found = names - (written - asked) - ours - set(environment.globals)
    return frozenset(n for n in found if not n.endswith(("_token", "_tokens")))
