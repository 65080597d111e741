"""Responses to prompts that make verifiable demands: who answers what, and what share is met, strictly and loosely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xwincli.errors import XwinError
from xwincli.metrics import best_of_n, bootstrap
from xwincli.metrics.bootstrap import plain
from xwincli.metrics.rm_audit import Column, shares
from xwincli.protocols.demands import Demand, demands
from xwincli.records import Asked, Group, Message, Prompt, Response

# -- prompts and their responses


@dataclass(frozen=True)
class Task:
    """One prompt, its demands and its responses."""

    prompt_id: str
    demands: list[Demand]
    responses: list[Response]


def response_row(row: Mapping[str, Any], _: str) -> Group | None:
    """IFEval's file of responses, ``{"prompt", "response"}``, where an empty response is a failed one."""
    prompt, text = row.get("prompt"), row.get("response")
    if not (isinstance(prompt, str) and prompt.strip() and isinstance(text, str)) or "kind" in row:
        return None
    extra = {k: v for k, v in row.items() if k not in ("prompt", "response")}
    said: list[Message] = [{"role": "user", "content": prompt}]
    return Group(prompt=said, responses=[Response(text=text)], extra=extra)


def asked(prompt: Iterable[Message]) -> tuple[tuple[str, str], ...]:
    """What prompts are joined by: the exact texts of all messages but the system's."""
    return tuple((m["role"], str(m.get("content"))) for m in prompt if m["role"] != "system")


def join(
    groups: Sequence[tuple[str, Group]], prompts: Sequence[tuple[str, Prompt]] | None, answers: str = ""
) -> tuple[list[Task], list[str]]:
    """The prompts with their responses, in the prompts' order, and the ids of those that have none.

    Args:
        groups: responses with their places.
        prompts: the prompts that make demands; None if the groups carry them.
        answers: as for ``demands``.

    Raises:
        XwinError: a prompt stands twice, responses belong to no prompt, or ``demands`` refuses a row.
    """
    answered = _by_text(groups)
    if prompts is None:
        made = [Task(_id(g), demands(g, where, answers), g.responses) for where, g in answered.values()]
        return made, []
    wanted = _by_text(prompts)
    if lost := [where for key, (where, _) in answered.items() if key not in wanted]:
        message = f"{lost[0]}: field prompt: is not among the prompts of --prompts"
        raise XwinError(message, f"{len(lost)} rows answer other prompts; the texts must be equal to the letter")
    made = []
    for key, (where, prompt) in wanted.items():
        required = demands(prompt, where, answers)
        if key in answered:
            made.append(Task(_id(prompt), required, answered[key][1].responses))
    return made, [_id(p) for key, (_, p) in wanted.items() if key not in answered]


def _by_text(rows: Sequence[tuple[str, Any]]) -> dict[Any, tuple[str, Any]]:
    found: dict[Any, tuple[str, Any]] = {}
    for where, row in rows:
        key = asked(row.prompt)
        if key in found:
            raise XwinError(f"{where}: field prompt: stands in {found[key][0]} already", "one row holds one prompt")
        found[key] = where, row
    return found


def _id(row: Asked) -> str:
    key = row.extra.get("key")
    return str(key) if isinstance(key, str | int) else str(getattr(row, "prompt_id", "") or row.id)


# -- what is counted


@dataclass(frozen=True)
class Outcome:
    """A task's results: for every response, for every demand, whether it is met (responses, demands)."""

    task: Task
    strict: list[list[bool]]
    loose: list[list[bool]]


def hold(task: Task) -> Outcome:
    """Put every response to every demand."""
    texts = [r.text for r in task.responses]
    return Outcome(
        task,
        [[d.strict(t) for d in task.demands] for t in texts],
        [[d.loose(t) for d in task.demands] for t in texts],
    )


def figures(outcomes: Sequence[Outcome], rounds: int, seed: int) -> dict[str, Any]:
    """Accuracies as shares with 95 % intervals over prompts, and pass@k and pass^k of all demands, strictly.

    Prompt level: the share of responses that meet all demands, averaged over prompts. Instruction level: the share
    of demands met. Both strictly and loosely (arXiv 2311.07911, section 2.2); with several responses a prompt each
    demand counts by the share of them that meet it.
    """
    ways = {"strict": [o.strict for o in outcomes], "loose": [o.loose for o in outcomes]}
    found: dict[str, Any] = {"prompt_level": {}, "instruction_level": {}}
    for way, rows in ways.items():
        values = [float(np.mean([all(met) for met in row])) for row in rows]
        found["prompt_level"][way] = plain(bootstrap.mean(values, rounds=rounds, seed=seed))
    columns = _columns(outcomes, ways)
    estimates = zip(columns, shares(list(columns.values()), len(outcomes), rounds=rounds, seed=seed), strict=True)
    for (level, name, way), e in estimates:
        if level == "all":
            found["instruction_level"][way] = plain(e)
            continue
        entry = found.setdefault(level, {}).setdefault(name, {"n": len(columns[level, name, way][0])})
        entry[way] = plain(e)
    return {**found, **_passes(outcomes, rounds, seed)}


def _columns(outcomes: Sequence[Outcome], ways: Mapping[str, list[Any]]) -> dict[tuple[str, str, str], Column]:
    """(prompt, share of its responses that meet a demand): of all demands, by group of kinds, by kind."""
    found: dict[tuple[str, str, str], tuple[list[int], list[float]]] = {}
    for way, rows in ways.items():
        for i, (outcome, row) in enumerate(zip(outcomes, rows, strict=True)):
            for demand, share in zip(outcome.task.demands, np.mean(row, axis=0).tolist(), strict=True):
                kind = demand.kind
                for key in (("all", "", way), ("by_group", kind.split(":")[0], way), ("by_kind", kind, way)):
                    who, values = found.setdefault(key, ([], []))
                    who.append(i)
                    values.append(share)
    return {key: (np.array(who, dtype=np.intp), np.array(values)) for key, (who, values) in sorted(found.items())}


def _passes(outcomes: Sequence[Outcome], rounds: int, seed: int) -> dict[str, Any]:
    n = min(len(o.task.responses) for o in outcomes)
    found: dict[str, Any] = {"n": n, "pass_at_k": [], "pass_hat_k": []}
    for name, metric in (("pass_at_k", best_of_n.pass_at_k), ("pass_hat_k", best_of_n.pass_hat_k)):
        for k in best_of_n.sizes(n):
            values = [metric([all(met) for met in o.strict], k) for o in outcomes]
            found[name].append({"k": k, **plain(bootstrap.mean(values, rounds=rounds, seed=seed))})
    return found


def result_rows(outcomes: Iterable[Outcome]) -> Iterable[dict[str, Any]]:
    """One row a response, for ``results.jsonl``: which demands it meets."""
    for o in outcomes:
        kinds = [d.kind for d in o.task.demands]
        for r, strict, loose in zip(o.task.responses, o.strict, o.loose, strict=True):
            yield {
                "prompt_id": o.task.prompt_id,
                "index": r.index,
                "instruction_id_list": kinds,
                "follow_all_instructions": all(strict),
                "follow_instruction_list": strict,
                "loose_follow_all_instructions": all(loose),
                "loose_follow_instruction_list": loose,
            }
