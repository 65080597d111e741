"""What contexts do: each prompt asked with none, the right, another prompt's, or the right ones among others'."""

from __future__ import annotations

import random
from collections.abc import Sequence

from xwincli.errors import XwinError
from xwincli.records import Group, Message, Prompt, content_id, prompt_id

ARMS = ("none", "right", "shuffled", "distractor")
NOTE = "ablation"  # the key of a row's extra that says what was shown
FRAME = """Answer the question from the passages. If they do not hold the answer, say that it is not in the context.

Passages:
{passages}

Question: {question}"""


def question(prompt: Prompt) -> str:
    """The prompt's last message.

    Raises:
        XwinError: the row has no contexts, or its prompt holds them already, so that no arm can be without.
    """
    if not prompt.contexts:
        raise XwinError("field contexts: is missing", "an ablation needs passages to take away")
    asked = str(prompt.prompt[-1]["content"])
    for i, passage in enumerate(prompt.contexts):
        if passage.strip() in asked:
            hint = "give the question alone; the passages are put before it"
            raise XwinError(f"field prompt: holds contexts[{i}] already", hint)
    return asked


def _others(rows: Sequence[Prompt], i: int, rng: random.Random) -> list[str]:
    """Contexts of another prompt that share no passage with row i's."""
    own = set(rows[i].contexts or [])
    start = rng.randrange(len(rows))
    for k in range(len(rows)):
        other = rows[(start + k) % len(rows)].contexts or []
        if not own & set(other):
            return list(other)
    raise XwinError(f"prompt {rows[i].id}: no other prompt has passages of its own", "give prompts on several texts")


def _shown(rows: Sequence[Prompt], i: int, arm: str, seed: int) -> list[str]:
    own = list(rows[i].contexts or [])
    if arm in ("none", "right"):
        return own if arm == "right" else []
    rng = random.Random(content_id(seed, rows[i].id))
    others = _others(rows, i, rng)
    if arm == "shuffled":
        return others
    mixed = own + others
    rng.shuffle(mixed)
    return mixed


def emit(rows: Sequence[Prompt], arm: str, seed: int) -> list[Prompt]:
    """The prompts of one arm, in the rows' order.

    none shows no passage, right the row's own, shuffled those of another prompt, distractor both in random order.
    All arms say the same words around them. The rows keep their own ``contexts``, against which answers are judged,
    and note the arm, the prompt they were made of and its question in ``ablation``.

    Args:
        rows: prompts with contexts.
        arm: one of ``ARMS``.
        seed: of what is drawn; one prompt gets the same others in both arms that have some.

    Raises:
        XwinError: no other prompt has passages that a prompt lacks.
    """
    made = []
    for i, row in enumerate(rows):
        shown = "\n\n".join(f"[{k}] {text}" for k, text in enumerate(_shown(rows, i, arm, seed), 1)) or "(none)"
        asked = question(row)
        last: Message = {**row.prompt[-1], "content": FRAME.format(passages=shown, question=asked)}
        note = {"arm": arm, "of": prompt_id(row.prompt), "question": asked}
        made.append(
            Prompt(
                id=content_id(row.id, arm, shown),
                prompt=[*row.prompt[:-1], last],
                checks=row.checks,
                reference=row.reference,
                contexts=row.contexts,
                category=row.category,
                extra={**row.extra, NOTE: note},
            )
        )
    return made


def note(group: Group) -> dict[str, str]:
    """What a group notes of its arm: ``arm``, ``of``, ``question``; empty where it is of none."""
    found = group.extra.get(NOTE)
    known = isinstance(found, dict) and all(isinstance(found.get(k), str) for k in ("arm", "of", "question"))
    return found if known and isinstance(found, dict) else {}


def origin(group: Group) -> Group:
    """The group under the id and the question of the prompt it was made of, so that arms join."""
    made = note(group)
    if made:
        group.prompt_id = made["of"]
        group.prompt = [*group.prompt[:-1], {**group.prompt[-1], "content": made["question"]}]
    return group
