"""A gate's result as JUnit XML, which every CI shows: red where the gate is, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as xml

from xwincli import jsonl
from xwincli.protocols.compare import Failed
from xwincli.protocols.gate import Measure, Row

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def report(measures: Sequence[Measure], failed: Failed, name: str) -> xml.Element:
    """One test suite a measure: a case for its verdict and one a prompt, red only where the gate is.

    A prompt that fell is a failure if its measure lost; a prompt without a verdict is an error.
    """
    root = xml.Element("testsuites", name=_clean(name))
    for m in measures:
        cases = [_verdict_case(m), *(_prompt_case(m, row) for row in m.rows)]
        root.append(_suite(f"{name}: {m.name}", cases))
    if failed:
        cases = [_case("no verdict", p, "error", why) for p, why in failed.items()]
        root.append(_suite(f"{name}: no verdict", cases))
    return root


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def _suite(name: str, cases: Sequence[xml.Element]) -> xml.Element:
    counts = {kind: str(sum(c.find(kind) is not None for c in cases)) for kind in ("failure", "error")}
    facts = {"tests": str(len(cases)), "failures": counts["failure"], "errors": counts["error"]}
    suite = xml.Element("testsuite", {"name": _clean(name), **facts})
    suite.extend(cases)
    return suite


def _case(group: str, name: str, kind: str, message: str, detail: str = "") -> xml.Element:
    case = xml.Element("testcase", classname=_clean(group), name=_clean(name))
    if kind == "system-out":
        xml.SubElement(case, kind).text = _clean(f"{message} {detail}".strip())
    elif kind:
        xml.SubElement(case, kind, message=_clean(message)).text = _clean(detail)
    return case


def _verdict_case(m: Measure) -> xml.Element:
    if m.before is None:
        message = f"{m.name}: mean {m.now:.4g} of {m.prompts} prompts; there is no baseline"
    else:
        message = f"{m.name}: {m.before:.4g} -> {m.now:.4g} over {m.compared} prompts: {m.verdict}"
    return _case("gate", f"{m.name}: no real loss", "failure" if m.lost else "system-out", message)


def _prompt_case(m: Measure, row: Row) -> xml.Element:
    fell = row.change is not None and row.change < 0
    kind = "failure" if fell and m.lost else "system-out" if fell or row.flaky else ""
    before = "" if row.baseline is None else f"{row.baseline:.4g} -> "
    message = f"{before}{row.score:.4g} ({len(row.scores)} answers)"
    return _case(m.name, f"{row.id} {row.prompt}", kind, message, "; ".join(row.missed))


def write(root: xml.Element, path: str) -> None:
    """The report as a file, whole or not at all."""
    xml.indent(root)
    with jsonl.atomic(Path(path)) as f:
        f.write(xml.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n")


def joined(files: Sequence[Path]) -> xml.Element:
    """Several reports as one, each file's suites under its name."""
    root = xml.Element("testsuites", name="eval gate")
    for path in files:
        for suite in xml.parse(path).getroot():
            suite.set("name", f"{path.stem}: {suite.get('name')}")
            root.append(suite)
    return root
