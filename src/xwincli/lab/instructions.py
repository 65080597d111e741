"""The demo's instructions: nine ways of asking about a topic, the checks each carries, and the splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from xwincli.checks import HELD_OUT
from xwincli.lab.topics import TOPICS, Topic
from xwincli.records import Prompt, content_id, prompt_id

T = TypeVar("T")
Check = tuple[str, Any]
Wording = tuple[str, list[Check]]

SHARES = {"pair": 0.32, "set": 0.315, "ppo": 0.203, "eval": 0.162}  # of the prompts, by hash of their text

# Every shape has a floor of words and names its topic (that check is added for all of them): a demand that
# short or off-topic text meets teaches a policy to be short or off topic.
# fmt: off
SHAPES: dict[str, list[Wording]] = {
    "sentence": [
        ("In one sentence, tell me something true about {noun}.", [("one_sentence", True), ("min_words", 8)]),
        ("Sum up {act} in a single sentence.", [("one_sentence", True), ("min_words", 8)]),
        ("Write one sentence of at least ten words that describes {noun}.",
         [("one_sentence", True), ("min_words", 10)]),
        ("What would you say about {act}? Answer with exactly one full sentence.",
         [("one_sentence", True), ("min_words", 8)]),
        ("One sentence, please: what comes to mind when you think of {noun}?",
         [("one_sentence", True), ("min_words", 8)]),
        ("Describe {noun} to a visitor from another planet, using one sentence of no more than 25 words.",
         [("one_sentence", True), ("min_words", 8), ("max_words", 25)]),
    ],
    "bullets": [
        ("List {count} facts about {noun} as bullets, one per line.",
         [("bullets", "{k}"), ("min_words", 10)]),
        ("Give me exactly {count} short bullets on {act}.", [("bullets", "{k}"), ("min_words", 8)]),
        ("What should I know about {noun}? Reply with {count} bullet points and nothing else.",
         [("bullets", "{k}"), ("min_words", 10)]),
        ("I am making notes on {act}. Put the main ideas in {count} bullets of a few words each.",
         [("bullets", "{k}"), ("min_words", 8), ("max_words", 36)]),
        ("Name {count} things people often get wrong about {noun}, as a bulleted list.",
         [("bullets", "{k}"), ("min_words", 10)]),
        ("Why does {act} matter? Answer in {count} bullets that each start with a dash.",
         [("bullets", "{k}"), ("min_words", 10)]),
    ],
    "child": [
        ("Explain {act} to a five-year-old in no more than 30 words.",
         [("max_words", 30), ("min_words", 10)]),
        ("A small child asks you about {noun}. Answer in simple words, without the word '{hard}'.",
         [("avoids", "{hard}"), ("min_words", 10)]),
        ("How would you explain {noun} to a kindergarten class? Use at most 25 words.",
         [("max_words", 25), ("min_words", 10)]),
        ("My little brother wants to know about {act}. Tell him in 10 to 35 words.",
         [("max_words", 35), ("min_words", 10)]),
        ("Pretend I am four years old and tell me about {noun}. Do not say '{hard}'.",
         [("avoids", "{hard}"), ("min_words", 10)]),
        ("Teach a child one thing about {noun} in 30 words or fewer, as a kind grandparent would.",
         [("max_words", 30), ("min_words", 10)]),
    ],
    "title": [
        ("Suggest a title for a story about {noun}, written entirely in lower case.",
         [("lower_case", True), ("min_words", 3), ("max_words", 10)]),
        ("I wrote a poem about {act}. Give it a title of three to eight words, all in lower case.",
         [("lower_case", True), ("min_words", 3), ("max_words", 8)]),
        ("What could a picture book about {noun} be called? Small letters only, and at least four words.",
         [("lower_case", True), ("min_words", 4), ("max_words", 12)]),
        ("Name a short film about {noun} in no more than eight words, without capital letters.",
         [("lower_case", True), ("min_words", 3), ("max_words", 8)]),
        ("Think of a headline for a blog post on {act}. Keep everything in lower case.",
         [("lower_case", True), ("min_words", 4), ("max_words", 14)]),
    ],
    "polite": [
        ("Turn this into a polite question: \"{blunt}\"", [("ends_with", "?"), ("min_words", 7)]),
        ("Make this sound kind and begin with 'Please': \"{blunt}\"",
         [("starts_with", "Please"), ("min_words", 6)]),
        ("Someone said: \"{blunt}\" How would a courteous person put it? Begin with 'Could you'.",
         [("starts_with", "Could you"), ("min_words", 7)]),
        ("Rewrite this rude message so that it is friendly and ends with a question mark: \"{blunt}\"",
         [("ends_with", "?"), ("min_words", 7)]),
        ("Say this more gently, starting with the word 'Would': \"{blunt}\"",
         [("starts_with", "Would"), ("min_words", 7)]),
    ],
    "tip": [
        ("Give a beginner one useful tip about {act}. Start with the word 'Always'.",
         [("starts_with", "Always"), ("min_words", 8)]),
        ("What is your best advice on {act}? Keep it between 8 and 25 words.",
         [("max_words", 25), ("min_words", 8)]),
        ("Offer one practical tip about {act} that starts with 'Try'.",
         [("starts_with", "Try"), ("min_words", 8)]),
        ("I know nothing about {noun}. Give me one piece of advice beginning with 'Never'.",
         [("starts_with", "Never"), ("min_words", 8)]),
        ("Share a single tip about {act} in at most 20 words.", [("max_words", 20), ("min_words", 8)]),
    ],
    "compare": [
        ("Compare {noun} with {rivals} without using any commas.", [("no_commas", True), ("min_words", 10)]),
        ("What is the difference between {noun} and {rivals}? Do not use a comma.",
         [("no_commas", True), ("min_words", 10)]),
        ("Which would you rather have more of in your life: {noun} or {rivals}? Say why, with no commas.",
         [("no_commas", True), ("min_words", 10)]),
        ("Write a comma-free comparison of {noun} and {rivals} in 10 to 35 words.",
         [("no_commas", True), ("min_words", 10), ("max_words", 35)]),
        ("Tell me one way in which {noun} and {rivals} are not alike. Leave commas out.",
         [("no_commas", True), ("min_words", 10)]),
    ],
    "subject": [
        ("Write the subject line of an e-mail about {matter}, in four to ten words.",
         [("min_words", 4), ("max_words", 10)]),
        ("I have to e-mail my colleagues about {matter}. Suggest a subject line without the word 'subject'.",
         [("avoids", "subject"), ("min_words", 4), ("max_words", 14)]),
        ("What would be a clear subject for an e-mail on {matter}? Ten words at most.",
         [("min_words", 4), ("max_words", 10)]),
        ("Please write only the subject line for a message about {matter}, five to twelve words long.",
         [("min_words", 5), ("max_words", 12)]),
        ("Help me get an e-mail about {matter} read: give me one short subject line with no comma in it.",
         [("no_commas", True), ("min_words", 4), ("max_words", 14)]),
    ],
    "question": [
        ("Ask me one thoughtful question about {noun}.", [("ends_with", "?"), ("min_words", 7)]),
        ("You are interviewing an expert on {act}. What is your first question?",
         [("ends_with", "?"), ("min_words", 7)]),
        ("Write a quiz question about {noun} in at most 20 words. It must end with a question mark.",
         [("ends_with", "?"), ("min_words", 7), ("max_words", 20)]),
        ("What would a curious child ask about {noun}? Give only the question.",
         [("ends_with", "?"), ("one_sentence", True), ("min_words", 6)]),
        ("Start a conversation about {act} with a question that begins with 'What'.",
         [("starts_with", "What"), ("ends_with", "?"), ("min_words", 7)]),
    ],
}

# What only the held-out split asks: each takes the place of a shape, where its text falls into that split.
HELD_OUT_SHAPES: dict[str, tuple[str, list[Wording]]] = {
    "child": (
        "sentences",
        [
            ("Explain {act} in exactly two sentences.", [("sentences", 2), ("min_words", 12)]),
            ("Tell me about {noun} in two sentences, no more and no fewer.",
             [("sentences", 2), ("min_words", 12)]),
            ("Introduce {noun} to someone new to them. Use exactly three short sentences.",
             [("sentences", 3), ("min_words", 12)]),
        ],
    ),
    "tip": (
        "number",
        [
            ("Give one tip about {act} that includes a number.", [("has_number", True), ("min_words", 8)]),
            ("What advice on {act} would you give? Mention at least one number.",
             [("has_number", True), ("min_words", 8)]),
            ("Share a piece of advice about {noun} with a figure in it, such as a time or an amount.",
             [("has_number", True), ("min_words", 8)]),
        ],
    ),
}

# fmt: on


def _pick(options: Sequence[T], *key: str) -> T:
    """One option, decided by the content of ``key`` alone."""
    return options[int(content_id(*key), 16) % len(options)]


def _fields(topic: Topic, shape: str) -> dict[str, str]:
    """The words a wording may name."""
    word, _, plural = topic.noun.partition(":")
    rival, _, rivals = topic.rival.partition(":")
    k = _pick((2, 3, 3, 4), topic.noun, shape, "count")
    return {
        **topic._asdict(),
        "word": word,
        "noun": plural or word,
        "rival": rival,
        "rivals": rivals or rival,
        "k": str(k),
        "count": ("zero", "one", "two", "three", "four")[k],
    }


def _ask(topic: Topic, shape: str, category: str, wordings: list[Wording]) -> Prompt:
    text, demands = _pick(wordings, topic.noun, shape, category)
    fields = _fields(topic, shape)
    topical = ["{word}", "{rival}"] if shape == "compare" else ["{word}"]
    checks: list[dict[str, Any]] = []
    for kind, value in [*demands, *(("mentions", word) for word in topical)]:
        value = value.format(**fields) if isinstance(value, str) else value
        checks.append({"kind": kind, "value": int(value) if kind == "bullets" else value})
    prompt = [{"role": "user", "content": text.format(**fields)}]
    row = Prompt(id=prompt_id(prompt), prompt=prompt, checks=checks, category=category)
    row.extra["split"] = split(row)
    return row


def split(row: Prompt) -> str:
    """The split a prompt belongs to, by the hash of its text: the same on every machine."""
    at = int(prompt_id(row.prompt), 16) / 16**16
    bounds = zip(SHARES, accumulate(SHARES.values()), strict=True)
    return next((name for name, bound in bounds if at < bound), "eval")


def prompts() -> Iterator[Prompt]:
    """All of the demo's prompts (62 topics in nine shapes), each with its split in ``extra``.

    The kinds of ``checks.HELD_OUT`` occur in the split ``eval`` only.
    """
    for topic in TOPICS:
        for shape, wordings in SHAPES.items():
            if shape in HELD_OUT_SHAPES:
                category, unseen = HELD_OUT_SHAPES[shape]
                row = _ask(topic, shape, category, unseen)
                if row.extra["split"] == "eval":
                    yield row
                    continue
            row = _ask(topic, shape, shape, wordings)
            assert not any(c["kind"] in HELD_OUT for c in row.checks or [])
            yield row
