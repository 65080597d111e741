"""What a judge is like: does it change its mind, favour a place, length or kin, and do others agree with it?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli import formats, jsonl, sources
from xwincli.errors import XwinError
from xwincli.judges.matches import Match, Side
from xwincli.metrics import agreement, bootstrap
from xwincli.metrics.bootstrap import Estimate, plain
from xwincli.protocols.alpaca import model_first
from xwincli.protocols.answer_flags import Said, flags
from xwincli.records import Game, Group, Judgement, Message, Pair, Response, content_id, prompt_id

GAP = 30  # characters by which two answers must differ for one to be the longer (AlpacaEval's bound)
LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)]\s|[a-zA-Z][.)]\s)", re.MULTILINE)  # a line that begins as an item of a list
ANNOTATION = ("instruction", "output_1", "output_2", "preference")
KIN: dict[str, re.Pattern[str]] = {
    name: re.compile(rf"(?<![a-z])(?:{pattern})")
    for name, pattern in {
        "OpenAI": r"(?:chat)?gpt|davinci|openai|o[134](?![a-z0-9])",
        "Anthropic": r"claude",
        "Google": r"gemini|gemma|palm|bard",
        "Llama": r"(?:code)?llama|vicuna|alpaca(?![_-]?eval)|tulu|xwin|guanaco|koala|wizardlm",
        "Mistral": r"mistral|mixtral|ministral|zephyr",
        "Qwen": r"qwen|qwq",
        "DeepSeek": r"deepseek",
        "Phi": r"phi(?![a-z])",
        "SmolLM": r"smollm",
        "Cohere": r"command|cohere|aya(?![a-z])",
        "Yi": r"yi(?![a-z])",
        "GLM": r"(?:chat)?glm",
    }.items()
}


# -- reading


def _annotation(row: dict[str, Any], where: str) -> Judgement | None:
    """A row of AlpacaEval's annotations.json: 1 for output_1, 2 for output_2; None where it has no preference.

    Its coin, seeded by the instruction, tells which output was shown first.
    """
    value, said = row["preference"], str(row["instruction"])
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise XwinError(f"{where}: field preference: {value!r} is not from 1 to 2", "0 or 1.5 is a tie")
    prompt: list[Message] = [{"role": "user", "content": said}]
    sides = [{"text": str(row[f"output_{i}"]), "model": row.get(f"generator_{i}") or f"output_{i}"} for i in (1, 2)]
    return Judgement(
        id=content_id(prompt, *sides),
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        a=sides[0],
        b=sides[1],
        games=[Game(first="b" if model_first(said) else "a", preference=value - 1 if value else 0.5)],
        judge=str(row.get("annotator") or ""),
    )


def _of_pair(pair: Pair) -> Judgement:
    a, b = ({"text": str(side[-1].get("content") or "")} for side in (pair.chosen, pair.rejected))
    games = [Game(first="a", preference=0.0)]
    return Judgement(id=pair.id, prompt_id=pair.prompt_id, prompt=pair.prompt, a=a, b=b, games=games)


def read(names: Sequence[str]) -> Iterator[Judgement]:
    """Judgements of files: ours, preferences of any known format, or AlpacaEval's annotations.

    Raises:
        XwinError: a row is none of these, or cannot be read.
    """
    for name in sources.expand(names):
        first = None if sources.is_stream(name) else next(jsonl.read(name), None)
        if first and all(key in first[1] for key in ANNOTATION):
            yield from filter(None, (_annotation(row, where) for where, row in jsonl.read(name)))
            continue
        for record in formats.read_any([name]):
            if isinstance(record, Pair):
                yield _of_pair(record)
            elif isinstance(record, Judgement):
                yield record
            else:
                raise XwinError(f"{name}: holds {formats.plural(type(record))}", "judgements or pairs are needed")


# -- one judgement


def flipped(j: Judgement) -> bool:
    """True if the two orders of showing gave two winners."""
    return len(j.games) == 2 and (j.games[0].preference - 0.5) * (j.games[1].preference - 0.5) < 0


def _preference(j: Judgement) -> float:
    """The chance that b is better: as said in one game, the verdict of two."""
    return j.games[0].preference if len(j.games) == 1 else j.verdict()


Key = tuple[str, str, str]  # a prompt and two texts, in the order of the alphabet


def _key(j: Judgement) -> Key:
    one, two = sorted((j.a["text"], j.b["text"]))
    return j.prompt_id, one, two


def _for_second(j: Judgement) -> float:
    """The chance that the text later in the alphabet is better, so that a and b may have changed places."""
    return _preference(j) if j.a["text"] <= j.b["text"] else 1 - _preference(j)


def match(j: Judgement) -> Match:
    """The comparison as it was put to the judge, to be put again."""
    a, b = (
        Side(Response(text=s["text"], index=s.get("index", 0), finish=s.get("finish")), s.get("model"))
        for s in (j.a, j.b)
    )
    carried = {k: getattr(j, k) for k in ("prompt_id", "prompt", "checks", "reference", "contexts", "category")}
    row = Group(id=j.id, responses=[a.response, b.response], **carried)
    return Match(row, a, b, () if j.a["text"] == j.b["text"] else tuple(g.first for g in j.games))


def share_of(judgements: Sequence[Judgement], share: float, seed: int) -> list[Judgement]:
    """A share of the judgements of different texts, the same ones for the same seed."""
    differ = [j for j in judgements if j.a["text"] != j.b["text"]]
    count = min(len(differ), math.ceil(share * len(differ)))
    return sorted(differ, key=lambda j: content_id(seed, j.id))[:count]


# -- figures


@dataclass(frozen=True)
class Count:
    """How intervals are made: resamples of prompts, and their seed."""

    rounds: int = bootstrap.ROUNDS
    seed: int = 0

    def share(self, events: Iterable[tuple[str, bool]]) -> dict[str, float | int | None]:
        """Share of (prompt, hit) events that hit, with its interval and their number."""
        rows = list(events)
        prompts, hits = [p for p, _ in rows], [hit for _, hit in rows]
        e, n = agreement.share(hits, prompts, rounds=self.rounds, seed=self.seed)
        return {**plain(e), "n": n}

    def agreement(self, one: list[float], two: list[float], prompts: list[str]) -> dict[str, Any]:
        """``metrics.agreement.agreement`` as JSON holds it."""
        found = agreement.agreement(one, two, prompts, rounds=self.rounds, seed=self.seed)
        return {k: plain(v) if isinstance(v, Estimate) else _finite(v) for k, v in found.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sides(j: Judgement) -> tuple[str, str]:
    """The winner's text and the loser's; b's twice for a tie (so AlpacaEval counts)."""
    side = _preference(j)
    return (j.a if side < 0.5 else j.b)["text"], (j.a if side > 0.5 else j.b)["text"]


def _longer(rows: Sequence[Judgement]) -> Iterator[tuple[str, bool]]:
    for j in rows:
        best, worse = map(len, _sides(j))
        if abs(best - worse) > GAP:
            yield j.prompt_id, best > worse


def longer_by(rows: Iterable[Judgement]) -> float | None:
    """By what share of the worse answer's length the better is longer, in the mean (AlpacaEval's percentage_longer)."""
    lengths = [tuple(map(len, _sides(j))) for j in rows]
    parts = [(best - worse) / worse for best, worse in lengths if worse]
    return sum(parts) / len(parts) if parts else None


def _listed(rows: Sequence[Judgement]) -> Iterator[tuple[str, bool]]:
    for j in rows:
        best, worse = (LIST.search(text) is not None for text in _sides(j))
        if best != worse:
            yield j.prompt_id, best


def lists_more(rows: Sequence[Judgement]) -> float | None:
    """By what share more of the better answers hold a list than of the worse (AlpacaEval's percentage_list)."""
    better, worse = (sum(LIST.search(_sides(j)[i]) is not None for j in rows) for i in (0, 1))
    return (better - worse) / worse if worse else None


def _first(rows: Sequence[Judgement]) -> Iterator[tuple[str, bool]]:
    for j in rows:
        for g in j.games:
            if g.preference != 0.5 and j.a["text"] != j.b["text"]:
                yield j.prompt_id, (g.preference < 0.5) == (g.first == "a")


def biases(rows: Sequence[Judgement], count: Count) -> dict[str, Any]:
    """Flips on swap (of those asked in both orders), and wins of the first shown, the longer and the listed.

    ``longer_wins``: of decided verdicts between answers that differ by more than 30 characters (Dubois et al. 2023,
    AlpacaEval's analyser); ``list_wins``: of those where one of the two answers holds a list.
    """
    twice = [j for j in rows if len(j.games) == 2]
    return {
        "flips": count.share((j.prompt_id, flipped(j)) for j in twice),
        "first_slot": count.share(_first(rows)),
        "longer_wins": count.share(_longer(rows)),
        "longer_by": longer_by(rows),
        "list_wins": count.share(_listed(rows)),
        "lists_more": lists_more(rows),
    }


def with_labels(rows: Sequence[Judgement], labels: Iterable[Judgement], common: bool, count: Count) -> dict[str, Any]:
    """Agreement with labels of the same comparisons; of several labels of one the mean counts.

    Raises:
        XwinError: a judgement has no label and ``common`` is off, or none has one.
    """
    given: dict[Key, list[float]] = {}
    for label in labels:
        given.setdefault(_key(label), []).append(_for_second(label))
    known = [j for j in rows if _key(j) in given]
    lacking = [j.prompt_id for j in rows if _key(j) not in given]
    if not known:
        raise XwinError("no judgement has a label", "labels are joined by the prompt and both answers' texts")
    if lacking and not common:
        listed = ", ".join(dict.fromkeys(lacking[:5])) + (" …" if len(lacking) > 5 else "")
        hint = "--common goes on with those that have one"
        raise XwinError(f"{len(lacking)} of {len(rows)} judgements have no label: {listed}", hint)
    said = [sum(given[_key(j)]) / len(given[_key(j)]) for j in known]
    found = count.agreement([_for_second(j) for j in known], said, [j.prompt_id for j in known])
    unused = len(given.keys() - {_key(j) for j in known})
    return {**found, "unlabelled": len(lacking), "unused_labels": unused}


def self_agreement(rows: Sequence[Judgement], again: Iterable[Judgement], count: Count) -> dict[str, Any]:
    """Agreement of the games of two runs, each game with the same one shown first.

    Raises:
        XwinError: no game was asked twice.
    """
    games = {(_key(j), _shown_first(j, g)): _of_shown(g) for j in rows for g in j.games if j.a["text"] != j.b["text"]}
    pairs = []
    for j in again:
        for g in j.games:
            if (place := (_key(j), _shown_first(j, g))) in games:
                pairs.append((games[place], _of_shown(g), j.prompt_id))
    if not pairs:
        raise XwinError("no comparison was asked twice", "both files need the same prompts, answers and orders")
    one, two, prompts = map(list, zip(*pairs, strict=True))
    return count.agreement(one, two, prompts)


def _shown_first(j: Judgement, g: Game) -> str:
    return str((j.a if g.first == "a" else j.b)["text"])


def _of_shown(g: Game) -> float:
    """The chance that the one shown second is better."""
    return g.preference if g.first == "a" else 1 - g.preference


def families(name: str | None) -> set[str]:
    """The model families that a name speaks of."""
    return {kin for kin, pattern in KIN.items() if pattern.search((name or "").lower())}


def self_preference(rows: Sequence[Judgement], count: Count) -> list[dict[str, Any]]:
    """Candidates of the judge's own family (by their names), each with how often it wins what is decided."""
    found: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for j in rows:
        kin = families(j.judge)
        for side, wins in ((j.a, 0.0), (j.b, 1.0)):
            other = j.b if side is j.a else j.a
            if kin & families(side.get("model")) and not kin & families(other.get("model")):
                events = found.setdefault((j.judge, side["model"]), [])
                events += [(j.prompt_id, j.verdict() == wins)] if j.verdict() != 0.5 else []
    return [
        {
            "judge": judge,
            "model": model,
            "family": sorted(families(judge) & families(model)),
            "wins": count.share(events),
        }
        for (judge, model), events in found.items()
    ]


def answers(rows: Iterable[Judgement]) -> Iterator[Said]:
    """Every answer that was judged."""
    for j in rows:
        for name, side in (("a", j.a), ("b", j.b)):
            yield Said(str(side.get("model") or name), j.prompt_id, side["text"])


def audit(
    rows: Sequence[Judgement],
    count: Count,
    *,
    labels: Iterable[Judgement] | None = None,
    again: Iterable[Judgement] | None = None,
    more: Iterable[Said] = (),
    common: bool = False,
) -> dict[str, Any]:
    """Everything about one judge.

    Args:
        rows: its judgements.
        count: how intervals are made.
        labels: of people or of another judge; they may name a and b the other way round.
        again: the same judge asked a second time.
        more: further answers to look at.
        common: leave out judgements without a label instead of refusing.
    """
    verdicts = [j.verdict() for j in rows]
    return {
        "judge": sorted({j.judge for j in rows}),
        "judgements": len(rows),
        "prompts": len({j.prompt_id for j in rows}),
        "verdicts": {name: verdicts.count(v) for name, v in (("a", 0.0), ("tie", 0.5), ("b", 1.0))},
        **biases(rows, count),
        "self_agreement": None if again is None else self_agreement(rows, again, count),
        "labels": None if labels is None else with_labels(rows, labels, common, count),
        "self_preference": self_preference(rows, count),
        "flags": flags([*answers(rows), *more]),
    }


def warnings(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a judge, each with what helps; said only where the interval shows it."""
    found = []
    for name, what, mend in (
        ("first_slot", "whatever is shown first", "ask in both orders: xwin judge --orders both"),
        ("longer_wins", "the longer answer", "compare with length held equal: length_controlled in eval.json"),
    ):
        e = audit[name]
        if e["low"] is not None and e["low"] > 0.5:
            found.append((f"the judge favours {what}: it wins {e['value']:.1%} of {e['n']}", mend))
    for kin in audit["self_preference"]:
        wins = kin["wins"]
        share = f", and wins {wins['value']:.1%} of {wins['n']}" if wins["n"] else ""
        message = f"{kin['model']} is of the judge's own family ({', '.join(kin['family'])}){share}"
        found.append((message, "judge with a model of another family, or beside labels: --labels"))
    if audit["flags"]:
        count = sum(f["prompts"] for f in audit["flags"])
        message = f"{count} answers are the same for many prompts or talk to the judge: see flags in audit.json"
        found.append((message, "read them; leave such a model out"))
    return found
