"""What is looked at before the first step: findings about the rows as ids, each with what to do about it.

The findings are pure functions of branches, tokenizer and template; ``report`` prints them as one block and
refuses to train where training could not do what the user means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xwincli.chat import Template
from xwincli.console import say
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.rows import Branch
from xwincli.train.comparisons import Comparisons
from xwincli.train.show import marks

SAY, WARN, REFUSE = "say", "warn", "refuse"
LONGER = 0.8  # share of pairs whose chosen side is the longer (or shorter) one from which it is worth a warning
ENOUGH = 20  # such pairs


@dataclass(frozen=True)
class Finding:
    """One thing seen: ``level`` is SAY, WARN or REFUSE; ``mend`` says what to do."""

    level: str
    text: str
    mend: str = ""


def report(findings: Iterable[Finding]) -> None:
    """Print the findings on stderr, the plain ones on one line.

    Raises:
        XwinError: at the first finding that refuses.
    """
    found = list(findings)
    facts = "; ".join(f.text for f in found if f.level == SAY)
    lines = [facts] if facts else []
    lines += [f"warning: {f.text}" + (f"\n  hint: {f.mend}" if f.mend else "") for f in found if f.level == WARN]
    for line in lines:
        say(f"preflight: {line}")
    if refused := next((f for f in found if f.level == REFUSE), None):
        raise XwinError(refused.text, refused.mend)


def conversations(branches: Sequence[Branch], template: Template) -> list[Finding]:
    """Rows of supervised finetuning: how much is learned, whether turns end, which rows repeat."""
    tokens = sum(map(len, branches))
    learned = [sum(marks(b, r)) for b in branches for r in range(len(b.responses))]
    share = sum(learned) / max(tokens, 1)
    first = sum(not b.prompt for b in branches)  # a first token is never a target
    found = [Finding(SAY, f"{len(branches)} rows of {tokens} tokens, {share:.1%} learned")]
    if not sum(learned):
        mend = "look at the mask with --show 3; the chat template must write the assistant's words, see --template"
        found.append(Finding(REFUSE, "no token would be learned: the loss mask is empty in every row", mend))
    elif sum(learned) == tokens - first:
        mend = "look at the mask with --show 3; the chat template must mark where the assistant begins, see --template"
        found.append(Finding(REFUSE, "every token would be learned, prompts included: the mask found no prompt", mend))
    elif empty := sum(not n for n in learned):
        found.append(Finding(WARN, f"{empty} of {len(learned)} rows have no token to learn", "look at --show 3"))
    ends = [run for b in branches for run in _learned_ends(b)]
    found += _stops("learned turns", ends, template)
    found += _repeats(branches, "rows")
    return [*found, Finding(SAY, f"template {template.digest}")]


def pairs(branches: Sequence[Branch], template: Template) -> list[Finding]:
    """Pairs of chosen and rejected: whether sides end, what repeats or contradicts, whether length decides."""
    prompts = len({tuple(b.prompt) for b in branches})
    tokens = sum(map(len, branches))
    found = [Finding(SAY, f"{len(branches)} pairs of {prompts} prompts, {tokens} tokens")]
    for side, name in enumerate(("chosen responses", "rejected responses")):
        found += _stops(name, [b.responses[side][-1] for b in branches if b.responses[side]], template)
    found += _repeats(branches, "pairs")
    whole = {_ids(b) for b in branches}
    both = sum((prompt, rejected, chosen) in whole for prompt, chosen, rejected in whole) // 2
    if both:
        text = f"{both} pairs stand there both ways round, so each takes back what the other teaches"
        found.append(Finding(WARN, text, "keep one of each: judge both orders, disagreement is a tie"))
    found += _length([len(b.responses[0]) - len(b.responses[1]) for b in branches])
    return [*found, Finding(SAY, f"template {template.digest}")]


def comparisons(
    items: Sequence[Comparisons], branches: Sequence[Branch], held: set[int], loaded: Loaded
) -> list[Finding]:
    """A reward model's prompts: pad and eos, contradictions, prompts on both sides of the split.

    Args:
        items: the comparisons by prompt.
        branches: their ids.
        held: numbers of the prompts held out for validation.
        loaded: the reward model.
    """
    games = [(i, game) for i, item in enumerate(items) for game in item.games]
    found = [Finding(SAY, f"{len(games)} comparisons of {len(items)} prompts, {len(held)} of them held out")]
    found += _pad(loaded)
    taught = {tuple(b.prompt) for i, b in enumerate(branches) if i not in held}
    shared = sum(tuple(branches[i].prompt) in taught for i in held)
    if shared:
        text = f"{shared} of {len(held)} held-out prompts are also learned, under another prompt_id"
        mend = (
            "leave prompt_id out of the data: it is then made of the prompt itself; the accuracy is too good as it is"
        )
        found.append(Finding(WARN, text, mend))
    seen = Counter((i, a, b) for i, (a, b, *_) in games)
    again = sum(n - 1 for n in seen.values())
    if again:
        found.append(Finding(SAY, f"{again} comparisons repeat another"))
    both = sum((i, b, a) in seen for i, a, b in seen) // 2
    if both:
        text = f"{both} pairs of responses are preferred in both directions"
        found.append(Finding(WARN, text, "judges disagree there: learn their mean with --soft, or judge again"))
    found += _length([_lead(branches[i], game) for i, game in games])
    return [*found, Finding(SAY, f"template {loaded.template.digest}")]


def _lead(branch: Branch, game: tuple[int, int, float, float]) -> int:
    """By how many tokens the better side is longer (by the chance that it is the better one)."""
    better, worse, chance, _ = game
    lead = len(branch.responses[better]) - len(branch.responses[worse])
    return lead if chance >= 0.5 else -lead


def _pad(loaded: Loaded) -> list[Finding]:
    pad = getattr(loaded.model.config, "pad_token_id", None)
    if pad is not None and pad != loaded.tokenizer.eos_token_id and pad not in loaded.template.stop_ids:
        return []
    what = (
        "has no pad token" if pad is None else f"pads with {loaded.tokenizer.convert_ids_to_tokens(pad)}, a stop token"
    )
    mend = "give the tokenizer a pad token of its own: other loaders read the score at the last token that is not pad"
    return [Finding(REFUSE, f"{loaded.name}: the reward model {what}", mend)]


def _learned_ends(branch: Branch) -> list[int]:
    """The last token of every learned run."""
    ends: list[int] = []
    for r, ids in enumerate(branch.responses):
        mask = [*marks(branch, r), False]
        ends += [ids[j] for j in range(len(ids)) if mask[j] and not mask[j + 1]]
    return ends


def _stops(name: str, ends: Sequence[int], template: Template) -> list[Finding]:
    """How many of the learned texts end with a stop token; where they do not, the model learns to run on."""
    stopped = sum(end in template.stop_ids for end in ends)
    if stopped == len(ends):
        return [Finding(SAY, f"all {name} end with a stop token")] if ends else []
    text = f"{len(ends) - stopped} of {len(ends)} {name} do not end with a stop token, so the model learns not to stop"
    if not stopped and name.startswith("learned"):
        return [Finding(WARN, text, "the chat template must close a turn with the tokenizer's eos, see --template")]
    return [Finding(WARN, text, "responses cut by the length limit have none: sample them again with more tokens")]


def _ids(branch: Branch) -> tuple[tuple[int, ...], ...]:
    return tuple(branch.prompt), *map(tuple, branch.responses)


def _repeats(branches: Sequence[Branch], name: str) -> list[Finding]:
    again = len(branches) - len({_ids(b) for b in branches})
    if not again:
        return []
    text = f"{again} of {len(branches)} {name} repeat another one, so they count more often"
    return [Finding(WARN, text, "leave repeats out if that is not meant; --epochs repeats all alike")]


def _length(leads: Sequence[int]) -> list[Finding]:
    """Whether the longer side is the preferred one; ``leads`` are chosen minus rejected tokens."""
    differ = [lead for lead in leads if lead]
    if not differ:
        return []
    share = sum(lead > 0 for lead in differ) / len(differ)
    text = f"the chosen side is the longer one in {share:.0%}"
    if max(share, 1 - share) < LONGER or len(differ) < ENOUGH:
        return [Finding(SAY, text)]
    return [
        Finding(
            WARN,
            text,
            "length alone can be learned from that: balance the pairs by length, see --rejected of xwin rs-filter",
        )
    ]
