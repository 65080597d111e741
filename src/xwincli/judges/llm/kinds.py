"""A judge is a folder: ``judge.toml`` (reader, scale, length) and the texts it is asked with. Ours lie in ``shipped``.

``system.txt`` is optional; ``user.txt`` is the question. ``user-turns.txt``, ``user-reference.txt`` and
``user-turns-reference.txt`` stand in its place for prompts of several turns and for known answers, where they exist.
In these texts ``{question}``, ``{conversation}``, ``{answer}``, ``{answer_a}``, ``{answer_b}``, ``{reference}``,
``{contexts}`` and ``{criteria}`` are filled in, each between marks that no answer can forge.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from xwincli.errors import XwinError
from xwincli.judges import Answer, Item
from xwincli.judges.llm.readers import READERS, Reader, Settings
from xwincli.records import Message, content_id

SHIPPED = Path(__file__).with_name("shipped")
FIELDS = ("question", "conversation", "answer", "answer_a", "answer_b", "reference", "contexts", "criteria")
_PLACE = re.compile(rf"\{{({'|'.join(FIELDS)})\}}")
TEXTS = ("system", "user", "user-turns", "user-reference", "user-turns-reference")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    about: str
    reader: str
    scale: tuple[float, float] = (1, 10)
    max_tokens: int = 1024
    temperature: float = 0.0
    weights: dict[str, float] | None = None
    criteria: dict[str, str] | None = None


@dataclass(frozen=True)
class Kind:
    """A judge as its folder describes it.

    Attributes:
        name: the folder's.
        about: one line for people.
        reader: how replies are read, with ``settings``.
        max_tokens, temperature: of replies.
        texts: by file name without its ending.
        criteria: of a rubric: what each means.
        digest: of all of it.
    """

    name: str
    about: str
    reader: Reader
    settings: Settings
    max_tokens: int
    temperature: float
    texts: dict[str, str]
    criteria: dict[str, str]
    digest: str

    @property
    def schema(self) -> dict[str, Any] | None:
        """JSON schema of a reply, if it has one."""
        return self.reader.schema(self.settings) if self.reader.schema else None

    def messages(self, item: Item | Answer) -> list[Message]:
        """What the model is asked about two answers, or about one."""
        texts = (item.a, item.b) if isinstance(item, Item) else (item.text,)
        mark = content_id(item.prompt, texts, item.references, item.contexts)[:10]  # no answer can hold its own digest
        filled = _values(item, mark) | {"criteria": "\n".join(f"- {k}: {v}" for k, v in self.criteria.items())}
        turns = "-turns" if len(item.prompt) > 2 else ""
        known = "-reference" if item.references else ""
        names = (f"user{turns}{known}", f"user{known}", f"user{turns}", "user")
        user = next(self.texts[name] for name in names if name in self.texts)
        asked = [("system", self.texts["system"])] if "system" in self.texts else []
        asked.append(("user", user))
        # one pass, so that what is filled in is not filled again
        return [{"role": r, "content": _PLACE.sub(lambda m: filled[m[1]], text).strip()} for r, text in asked]


def _quoted(title: str, text: str, mark: str) -> str:
    return f"[{title} {mark}]\n{text}\n[END {title} {mark}]"


def _values(item: Item | Answer, mark: str) -> dict[str, str]:
    last = str(item.prompt[-1].get("content") or "")
    before = "\n".join(_quoted(str(m["role"]).upper(), str(m.get("content") or ""), mark) for m in item.prompt[:-1])
    known = "\n".join(_quoted("REFERENCE", text, mark) for text in item.references or [])
    given = "\n".join(_quoted(f"PASSAGE {i}", text, mark) for i, text in enumerate(item.contexts or [], 1))
    values = {
        "question": _quoted("QUESTION", last, mark),
        "conversation": before or "(nothing was said before)",
        "reference": known or "(there is no reference answer)",
        "contexts": given or "(there are no passages)",
    }
    if isinstance(item, Item):
        sides = {"answer_a": _quoted("ANSWER A", item.a, mark), "answer_b": _quoted("ANSWER B", item.b, mark)}
        return values | sides | {"answer": ""}
    return values | {"answer": _quoted("ANSWER", item.text, mark), "answer_a": "", "answer_b": ""}


def shipped() -> list[str]:
    """Names of the judges that come with us."""
    return sorted(p.name for p in SHIPPED.iterdir() if (p / "judge.toml").is_file())


def load(name: str) -> Kind:
    """A judge by its name, or the folder of one.

    Raises:
        XwinError: the folder's files are not a judge; says which file and why.
    """
    folder = SHIPPED / name if name in shipped() else Path(name)
    path = folder / "judge.toml"
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as e:
        raise XwinError(
            f"{path}: cannot read the judge: {e.strerror}", "a judge is a folder with judge.toml and user.txt"
        ) from e
    except ValueError as e:
        raise XwinError(f"{path}: not a judge: {e}", "see docs/judges.md") from None
    texts = {n: (folder / f"{n}.txt").read_text(encoding="utf-8") for n in TEXTS if (folder / f"{n}.txt").is_file()}
    _check(path, file, texts)
    return Kind(
        name=folder.resolve().name,
        about=file.about,
        reader=READERS[file.reader],
        settings=Settings(file.scale, file.weights),
        max_tokens=file.max_tokens,
        temperature=file.temperature,
        texts=texts,
        criteria=file.criteria or {},
        digest=content_id(msgspec.to_builtins(file), texts),
    )


def _check(path: Path, file: _File, texts: dict[str, str]) -> None:
    if file.reader not in READERS:
        raise XwinError(f"{path}: field reader: {file.reader!r} is unknown", f"readers are: {', '.join(READERS)}")
    if "user" not in texts:
        raise XwinError(f"{path.with_name('user.txt')}: is missing", "it is the question the judge is asked")
    if file.scale[0] >= file.scale[1]:
        raise XwinError(f"{path}: field scale: {list(file.scale)} goes nowhere", "as: scale = [1, 10]")
    if file.reader == "rubric" and (not file.weights or set(file.weights) != set(file.criteria or {})):
        raise XwinError(
            f"{path}: a rubric has [criteria] and [weights] of the same names", 'as: clear = "…"; clear = 1'
        )
    wanted = ["answer_a", "answer_b"] if READERS[file.reader].compares else ["answer"]
    for name, text in texts.items():
        for field in wanted if name.startswith("user") else []:
            if f"{{{field}}}" not in text:
                raise XwinError(f"{path.with_name(name + '.txt')}: does not hold {{{field}}}", "the judge must see it")
