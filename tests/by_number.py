"""A judge that reads answers as numbers, and files of such answers: verdicts that a reader can check by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xwincli.judges import Answer, Item, Rated, Verdict
from xwincli.protocols import compare
from xwincli.records import Group, Response


class ByNumber:
    """The answer is its own grade; ``first_bonus`` is added to whatever is shown first."""

    name = "by-number"
    scorer = "judge by-number"

    def receipt(self) -> dict[str, float]:
        return {}

    def __init__(self, first_bonus: float = 0) -> None:
        self.first_bonus = first_bonus

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        for i in items:
            a, b = float(i.a) + self.first_bonus, float(i.b)
            yield Verdict(preference=0.5 if a == b else float(b > a), reason=f"{a} {b}")

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        for a in answers:
            yield Rated(rating=float(a.text))


def entry(name: str, rows: dict[str, list[float]], finish: str = "stop") -> compare.Entry:
    groups = []
    for p, numbers in rows.items():
        responses = [Response(text=f"{x:g}", index=i, finish=finish, tokens=3) for i, x in enumerate(numbers)]
        ask = [{"role": "user", "content": f"a number {p}"}]
        groups.append(Group(id=p + name, prompt_id=p, prompt=ask, responses=responses))
    return compare.entry(name, f"{name}.jsonl", groups)
