"""What a model is about to learn, token by token: ``--show N`` prints rows with their loss mask and stops there.

On a terminal learned tokens are green, the others dim, special tokens bold. Elsewhere learned tokens stand in
``[[…]]``. A reward model learns from a response's last token, where its reward is read; so that is what is marked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from xwincli.console import is_main
from xwincli.rows import Branch
from xwincli.train.comparisons import Comparisons


def marks(branch: Branch, response: int) -> list[bool]:
    """Which tokens of a response are targets of the loss, as ``rows.lay`` takes them."""
    found = list(branch.learned[response]) if branch.learned else [True] * len(branch.responses[response])
    if not branch.prompt and found:
        found[0] = False  # nothing stands before it to predict it from
    return found


def last_marked(branch: Branch) -> Branch:
    """The branch as a reward model sees it: each response's last token is marked."""
    return Branch(branch.prompt, branch.responses, [[False] * (len(r) - 1) + [True] for r in branch.responses])


def sides(item: Comparisons) -> list[str]:
    """What a prompt's responses are called: each with the ones it is preferred to."""
    names: list[str] = []
    for i in range(len(item.sides)):
        beaten = sorted({worse + 1 for better, worse, *_ in item.games if better == i})
        names.append(f"response {i + 1}" + (f", preferred to {', '.join(map(str, beaten))}" if beaten else ""))
    return names


def show(branches: Sequence[Branch], tokenizer: Any, count: int, names: Sequence[Sequence[str]] = ()) -> None:
    """Print the first ``count`` branches to stderr, from rank 0.

    Args:
        branches: as they will be learned.
        tokenizer: turns ids back to text.
        count: how many.
        names: per branch what its responses are called ("chosen", "rejected"); numbered where left out.
    """
    if not is_main():
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for i, branch in enumerate(branches[:count]):
        whole, learned = len(branch), sum(sum(marks(branch, r)) for r in range(len(branch.responses)))
        called = names[i] if names else ()
        title = f"row {i + 1} of {len(branches)}: {whole} tokens, {learned} learned"
        if not sys.stderr.isatty():
            print("\n".join([title, *plain(branch, tokenizer, called), ""]), file=sys.stderr, flush=True)
            continue
        console.print(title, style="bold")
        for part, ids, mask in _parts(branch, called):
            if part:
                console.print(f"{part}:", style="italic")
            console.print(coloured(ids, mask, tokenizer))
        console.print()


def plain(branch: Branch, tokenizer: Any, names: Sequence[str] = ()) -> list[str]:
    """A branch as lines of text, its learned tokens in ``[[…]]``."""
    lines: list[str] = []
    for part, ids, mask in _parts(branch, names):
        text = "".join(f"[[{piece}]]" if on else piece for on, piece in _runs(ids, mask, tokenizer))
        lines += [f"{part}:", text] if part else [text]
    return lines


def coloured(ids: Sequence[int], mask: Sequence[bool], tokenizer: Any) -> Text:
    """Tokens as rich text: learned green, others dim, special ones bold."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    text = Text()
    for (on, bold), run in groupby(zip(mask, ids, strict=True), key=lambda pair: (pair[0], pair[1] in special)):
        colour = "green" if on else "dim"
        text.append(_decode([i for _, i in run], tokenizer), style=f"{colour} bold" if bold else colour)
    return text


def _parts(branch: Branch, names: Sequence[str]) -> Iterator[tuple[str, list[int], list[bool]]]:
    """(name, ids, mask) of the prompt and of each response; a conversation is one part without a name."""
    if branch.prompt:
        yield "prompt", branch.prompt, [False] * len(branch.prompt)
    for r, ids in enumerate(branch.responses):
        name = names[r] if r < len(names) else f"response {r + 1}"
        yield name if branch.prompt else "", ids, marks(branch, r)


def _runs(ids: Sequence[int], mask: Sequence[bool], tokenizer: Any) -> Iterator[tuple[bool, str]]:
    for on, run in groupby(zip(mask, ids, strict=True), key=lambda pair: pair[0]):
        yield on, _decode([i for _, i in run], tokenizer)


def _decode(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
