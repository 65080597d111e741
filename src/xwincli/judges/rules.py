"""The judge that needs no model: a rating of 1 to 10 from the prompt's checks, fluency, topic and ending.

It reads English and knows no facts: the demo's gold and a ruler for tests, not a measure of helpfulness.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import msgspec

from xwincli.checks import BULLET, closed, describe, mentioned, passes, words
from xwincli.errors import USAGE, XwinError
from xwincli.judges import Answer, Item, Options, Rated, Verdict
from xwincli.records import Message, content_id
from xwincli.settings import Device

Check = dict[str, Any]
LOW, HIGH = 1.0, 10.0
# A fault bounds the rating whatever else is right; every further fault takes one more off, and so does the
# share of unmet demands, so that faulty answers still differ. Without bounds "Soy sauce, chicken soup." can
# get a 10: short and on topic must not be enough.
CAPS = {
    "is off topic": 5.0,
    "is too short": 5.0,
    "repeats itself": 5.0,
    "is cut off": 5.0,
    "is a list of words, no sentence": 4.0,
    "declines": 4.0,
    "echoes the prompt": 4.0,
}
BRIEF = 14  # a demand for at most so many words asks for a title or a headline, which need be no sentence
FUNCTION = frozenset(
    """
    a an the this that these those some any each every no not and or but so if as than then because while when
    where who what which how why i you he she it we they me him her us them my your his its our their is are
    was were be been being am do does did have has had can could will would shall should may might must of to
    in on at by for from with about into over under after before between through without up down out off there
    here it's don't you're i'm that's
    """.split()  # noqa: SIM905
)
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
# what no English word looks like: no vowel, a pile of consonants, one letter thrice, letters after digits
_ODD_WORD = re.compile(
    rf"\b(?:[{_CONSONANTS}]{{4,}}|\w*[{_CONSONANTS}]{{6,}}\w*|\w*([a-z])\1\1\w*|[a-z]{{2,}}[A-Z]\w*"
    r"|\d+[A-Za-z]{3,}\w*|[A-Za-z]+\d\w*|\w{22,})\b"
)
_UNCLEAN = re.compile(
    r"<\|?/?\w+\|?>|\|>|[\x00-\x08\x0b-\x1f\ufffd]|[!?.,;~]{4,}|\\n|\[(?:your|insert|name|topic)\b[^\]]*\]"
    r"|^\s*(?:user|assistant|human|system|instruction|question|answer)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_DECLINES = re.compile(
    r"^\W*(?:i['’]?m (?:so |very )?sorry,? but|sorry,? (?:but )?i can"
    r"|i (?:can(?:no|['’])t|am unable|am not able)|as an ai\b)",
    re.IGNORECASE,
)
_STUTTER = re.compile(r"\b(\w+)(?:\W+\1\b){2}")
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]")
DANGLING = re.compile(r"(?:[,:;(\-–]|\b(?:a|an|the|and|or|of|to|with|for|in|is|are|because|that))\s*$", re.IGNORECASE)
SCRIPTS = tuple(
    re.compile(f"[{span}]") for span in ("A-Za-zÀ-ɏ", "Ͱ-Ͽ", "Ѐ-ӿ", "֐-׿", "؀-ۿ", "ऀ-ॿ", "฀-๿", "぀-ヿ㐀-鿿", "가-힣")
)


@dataclass(frozen=True)
class Asked:
    """What the judge takes from a prompt: its content words by stem, and the runs of words an echo shares."""

    stems: frozenset[str]
    trigrams: frozenset[tuple[str, ...]]
    runs: frozenset[tuple[str, ...]]
    quotes: frozenset[str]
    long: bool
    english: bool


@dataclass(frozen=True)
class Assessment:
    """A rating from 1 to 10 and the sentence that says why."""

    rating: float
    reason: str


def _stem(word: str) -> str:
    return word[:5].rstrip("s") if len(word) > 3 else word


def _grams(tokens: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)


@lru_cache(maxsize=4096)
def _read_prompt(asked: str, last: str) -> Asked:
    every = [w.lower() for w in words(asked)]
    own = [w.lower() for w in words(_QUOTED.sub(" ", last))]  # text given to be reworked may be reused
    return Asked(
        stems=frozenset(_stem(w) for w in every if w not in FUNCTION and not w.isdigit()),
        trigrams=frozenset(_grams(own, 3)),
        runs=frozenset(_grams(own, 8)),
        quotes=frozenset(" ".join(words(q.lower())) for q in _QUOTED.findall(last)),
        long=len(own) > 60,
        english=any(w in FUNCTION for w in every),
    )


def _repeats(text: str, tokens: list[str]) -> bool:
    """Stutters, a pet word, few distinct trigrams, or a sentence said twice."""
    if _STUTTER.search(text):
        return True
    content = Counter(w for w in tokens if w not in FUNCTION)
    if content and (top := max(content.values())) >= 4 and top > 0.25 * len(tokens):
        return True
    if len(tokens) >= 9 and len(set(_grams(tokens, 3))) < 0.7 * (len(tokens) - 2):
        return True
    said = [" ".join(w) for piece in re.split(r"[\n.!?]+", text) if len(w := words(piece)) >= 3]
    return len(set(said)) < len(said)


def _echoes(tokens: list[str], asked: Asked) -> bool:
    if " ".join(tokens) in asked.quotes or any(run in asked.runs for run in _grams(tokens, 8)):
        return True
    grams = list(_grams(tokens, 3))
    shared = sum(g in asked.trigrams for g in grams)
    return len(tokens) >= 5 and shared >= (0.8 if asked.long else 0.5) * len(grams)


def _word_list(text: str, tokens: list[str], asked: Asked, checks: list[Check]) -> bool:
    """Words set side by side without the small ones that make a sentence of them (English prompts only)."""
    brief = any(c["kind"] == "max_words" and c["value"] <= BRIEF for c in checks)
    if brief or not asked.english or not text.isascii() or BULLET.search(text):
        return False
    small = sum(w in FUNCTION for w in tokens)
    return small == 0 or (len(tokens) >= 12 and not 0.08 <= small / len(tokens) <= 0.8)


def _mixes_scripts(text: str, prompt: str) -> bool:
    """Letters of a second script that the prompt does not have either."""
    if text.isascii():
        return False
    found = [s for s in SCRIPTS if s.search(text)]
    return len(found) > 1 and any(not s.search(prompt) for s in found)


def _topic(text: str, tokens: list[str], asked: Asked, checks: list[Check]) -> float:
    """How much of what the prompt is about the answer takes up, 0 to 1."""
    if named := [c["value"] for c in checks if c["kind"] == "mentions"]:
        return sum(mentioned(w, text) for w in named) / len(named)
    if not asked.stems:
        return 1.0
    return min(1.0, len(asked.stems & {_stem(w) for w in tokens}) / min(3, len(asked.stems)))


@lru_cache(maxsize=1 << 16)
def _assess(asked_text: str, last: str, text: str, finish: str | None, checks_json: bytes) -> Assessment:
    """The rating itself; every argument is hashable, so that an answer met in many pairs is read once."""
    checks: list[Check] = msgspec.json.decode(checks_json)
    met = [c for c in checks if passes(c, text)]
    missed = [c for c in checks if c not in met]
    tokens = [w.lower() for w in words(text)]
    if len(tokens) < 2:
        said = "is empty" if not text.strip() else "is less than two words"
        return Assessment(LOW, f"rated 1: the answer {said}")
    asked = _read_prompt(asked_text, last)
    topic = _topic(text, tokens, asked, checks)
    ended = finish == "stop" or (finish is None and not DANGLING.search(text))
    faults = {
        "is off topic": topic == 0,
        "is too short": len(tokens) < 4 or any(c["kind"] == "min_words" for c in missed),
        "repeats itself": _repeats(text.lower(), tokens),
        "is cut off": (finish == "length" and not closed(text)) or DANGLING.search(text) is not None,
        "is a list of words, no sentence": _word_list(text, tokens, asked, checks),
        "declines": _DECLINES.search(text) is not None,
        "echoes the prompt": _echoes(tokens, asked),
    }
    clean = not _UNCLEAN.search(text) and not _mixes_scripts(text, asked_text)
    known = sum(1 for _ in _ODD_WORD.finditer(text)) <= 0.12 * len(tokens)
    share = len(met) / len(checks) if checks else (topic + min(1.0, len(tokens) / 12)) / 2
    rating = LOW + 3.5 * share + 1.5 * (share == 1) + ended + 1.5 * (topic > 0)
    rating += 0.5 * (not faults["repeats itself"]) + 0.5 * clean + 0.5 * known
    found = [name for name, there in faults.items() if there]
    if found:
        worst = min(CAPS[name] for name in found)
        rating = min(rating, worst - (len(found) - 1) - (1 - share))
    rating = min(max(rating - 2 * faults["echoes the prompt"], LOW), HIGH)
    if not clean:
        found.append("holds markup or stray characters")
    if not known:
        found.append("holds odd words")
    return Assessment(round(rating, 3), _sentence(rating, met, missed, ended, topic, found))


def _sentence(rating: float, met: list[Check], missed: list[Check], ended: bool, topic: float, found: list[str]) -> str:
    """``rated 5: meets …; misses …; on topic, ended by itself; but repeats itself``."""
    parts = [f"meets {', '.join(map(describe, met))}"] if met else []
    parts += [f"misses {', '.join(map(describe, missed))}"] if missed else []
    good = ["on topic"] * (topic > 0) + ["ended by itself"] * ended
    parts += [", ".join(good)] if good else []
    parts += [f"but {', '.join(found)}"] if found else []
    return f"rated {rating:.3g}: {'; '.join(parts) or 'nothing speaks for it'}"


def assess(
    prompt: Sequence[Message], text: str, finish: str | None = None, checks: Sequence[Check] | None = None
) -> Assessment:
    """Rate one answer.

    Args:
        prompt: the conversation it answers.
        text: the answer.
        finish: "stop" if it ended by itself, "length" if it was cut, None if nobody knows.
        checks: the prompt's verifiable demands; without any, topic and substance stand in for them.

    Raises:
        XwinError: a check is of no known kind.
    """
    said = [str(m["content"]) for m in prompt if m["role"] == "user"] or [""]
    return _assess("\n".join(said), said[-1], text, finish, msgspec.json.encode(list(checks or [])))


class Rules:
    """The rules as a judge; if asked, with human weaknesses: noisy readings, a liking for the first."""

    name = "rules"
    scorer = "judge rules"

    def __init__(self, noise: float = 0.0, position_bias: float = 0.0, seed: int = 0) -> None:
        self.noise, self.position_bias, self.seed = noise, position_bias, seed

    def _error(self, *observed: str) -> float:
        """Gaussian error of one reading, drawn from its content so that reruns agree."""
        if not self.noise:
            return 0.0
        u = (int(content_id(self.seed, *observed), 16) + 0.5) / 16**16
        return self.noise * NormalDist().inv_cdf(min(max(u, 1e-15), 1 - 1e-15))

    def receipt(self) -> dict[str, float]:
        """See ``Judge``: it asks nobody."""
        return {}

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        """Compare by the two ratings as this judge reads them; equal readings are a tie."""
        for item in items:
            first = assess(item.prompt, item.a, item.a_finish, item.checks)
            second = assess(item.prompt, item.b, item.b_finish, item.checks)
            a = first.rating + self._error(item.id, "first") + self.position_bias
            b = second.rating + self._error(item.id, "second")
            yield Verdict(
                preference=0.5 if a == b else float(b > a),
                rating_a=_on_scale(a),
                rating_b=_on_scale(b),
                reason=f"first {first.reason}. second {second.reason}.",
            )

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        """Grade each answer by itself."""
        for answer in answers:
            found = assess(answer.prompt, answer.text, answer.finish, answer.checks)
            yield Rated(rating=_on_scale(found.rating + self._error(answer.id, "alone")), reason=found.reason)


def _on_scale(rating: float) -> float:
    return round(min(max(rating, LOW), HIGH), 3)


def make(options: Options, seed: int, device: Device) -> Rules:
    """The rules judge; refuses a reward model and arguments of a chat template, for which it has no use."""
    if options.rm:
        message = f"the rules judge uses no reward model (--rm {options.rm})"
        raise XwinError(message, "say --judge reward", USAGE)
    if options.chat.template_arg:
        raise XwinError("--template-arg means nothing to the rules judge", "it reads no chat template", USAGE)
    return Rules(options.noise, options.position_bias, seed)
