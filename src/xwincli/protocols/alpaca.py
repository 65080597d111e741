"""AlpacaEval 2: one answer of a model against the baseline's for every instruction, judged once in a drawn order."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xwincli.errors import FAILED_ROWS, XwinError
from xwincli.judges.matches import Match, Side
from xwincli.metrics import length_control, win_rate
from xwincli.metrics.bootstrap import Estimate
from xwincli.metrics.length_control import Calibration, Fit, Weights
from xwincli.protocols.alpaca_files import Annotation, Outputs, listed
from xwincli.records import Group, Judgement


@dataclass
class Battle:
    """One instruction: its annotation row, and the chance that the model (output_2) is better, if there is one.

    ``groups`` hold the answers as they were read, baseline first; None where only an annotation is known.
    ``error`` says why a judge gave no verdict.
    """

    row: dict[str, Any]
    chance: float | None = None
    groups: tuple[Group, Group] | None = None
    error: str = ""

    @property
    def instruction(self) -> str:
        """What both answer."""
        return str(self.row["instruction"])

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters (code points) of the baseline's and the model's answer."""
        return len(self.row["output_1"]), len(self.row["output_2"])


Missing = dict[str, list[str]]  # file -> the instructions it lacks


def join(base: Outputs, model: Outputs, known: Mapping[str, Annotation], common: bool) -> tuple[list[Battle], Missing]:
    """The instructions of both files in the baseline's order; a known annotation of the same two answers is kept.

    Raises:
        XwinError: one file lacks an instruction that the other has and ``common`` is off, nothing is shared, or
            both models have one name.
    """
    missing = absent({base.file: base.groups, model.file: model.groups}, common)
    battles = []
    for instruction, one in base.groups.items():
        if two := model.groups.get(instruction):
            row = _row(instruction, (base.generator, one), (model.generator, two))
            before = known.get(instruction)
            if before and all(before.row[k] == row[k] for k in ("output_1", "output_2")):
                battles.append(Battle({**before.row, **row}, before.chance, (one, two)))
            else:
                battles.append(Battle(row, groups=(one, two)))
    if base.generator == model.generator and any(b.row["output_1"] != b.row["output_2"] for b in battles):
        hint = "--name gives the model another name"
        raise XwinError(f"{model.file}: field generator: is {model.generator!r}, as the baseline's is", hint)
    return battles, missing


def absent(tables: Mapping[str, Mapping[str, Any]], common: bool) -> Missing:
    """What each file lacks of the instructions that any file has; see ``join``."""
    every = list(dict.fromkeys(i for table in tables.values() for i in table))
    missing = {file: lost for file, table in tables.items() if (lost := [i for i in every if i not in table])}
    if not any(all(i in table for table in tables.values()) for i in every):
        raise XwinError(f"{' and '.join(tables)}: field instruction: there is none in common")
    if missing and not common:
        file, lost = next(iter(missing.items()))
        text = f"{file}: field instruction: {len(lost)} of {len(every)} instructions are missing: {listed(lost)}"
        raise XwinError(text, "--common goes on with those that all files have, and exits 3")
    return missing


def _row(instruction: str, base: tuple[str, Group], model: tuple[str, Group]) -> dict[str, Any]:
    (name_1, one), (name_2, two) = base, model
    row = {"instruction": instruction, "output_1": one.responses[0].text, "generator_1": name_1}
    row |= {"output_2": two.responses[0].text, "generator_2": name_2}
    extra = {**two.extra, **one.extra}
    return {**row, **{k: extra[k] for k in ("dataset", "datasplit") if k in extra}}


# -- judging


def model_first(instruction: str) -> bool:
    """AlpacaEval's coin: True if output_2, the model's answer, is shown first."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def match(battle: Battle, both: bool = False) -> Match:
    """What the judge is asked: the baseline's answer as ``a``, the model's as ``b``; nothing for equal answers.

    Args:
        battle: one whose groups are known.
        both: ask in both orders, AlpacaEval's first.
    """
    assert battle.groups is not None
    one, two = battle.groups
    first = ("b", "a") if model_first(battle.instruction) else ("a", "b")
    orders = () if battle.row["output_1"] == battle.row["output_2"] else first if both else first[:1]
    names = battle.row["generator_1"], battle.row["generator_2"]
    return Match(two, Side(one.responses[0], names[0]), Side(two.responses[0], names[1]), orders)


def annotate(battle: Battle, judgement: Judgement) -> None:
    """Write a judgement into the battle's annotation: the preference is 1 + the mean chance over its games."""
    games = judgement.games
    battle.chance = sum(g.preference for g in games) / len(games)
    said = [g.raw for g in games]
    prices = [g.usd for g in games if g.usd is not None]
    battle.row |= {
        "annotator": judgement.judge,
        "preference": 1 + battle.chance,
        "price_per_example": sum(prices) if prices else None,
        "raw_completion": said if len(said) > 1 else said[0],
    }


def give_up(battle: Battle, judge: str, error: str) -> None:
    """Note that a judge had no verdict: the preference stays null."""
    battle.error = error
    battle.row |= {"annotator": judge, "preference": None}


# -- counting


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _fits(battles: Sequence[Battle], calibration: Calibration | None) -> dict[str, Any]:
    """The package's forms of length control by its names for them; none without a calibration."""
    found: dict[str, Any] = {}
    base_lengths, lengths = zip(*(b.lengths for b in battles), strict=True)
    for form in length_control.FORMS if calibration else ():
        fit: Fit | None
        if battles[0].row["generator_1"] == battles[0].row["generator_2"]:
            fit = Fit(50.0, 0.0, Weights(0.0, 0.0, 0.0), None)  # the baseline itself, by construction
        else:
            fit = length_control.compatible([b.chance for b in battles], base_lengths, lengths, calibration, form)
        found[form] = fit and _plain(asdict(fit))
    return found


def evaluate(
    battles: Sequence[Battle], calibration: Calibration | None = None, rounds: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Every figure of ``eval.json``.

    Args:
        battles: one an instruction, of one model and one baseline, in the order of the evaluation set.
        calibration: AlpacaEval's, for the package's own length-controlled win rate.
        rounds, seed: of the bootstrap over instructions.

    Returns:
        The package's figures, 95 % intervals of the win rate and of the length-controlled win rate at equal
        lengths (``win_rate.length_controlled``), and with a calibration, as ``package``, the package's own.

    Raises:
        XwinError: no battle has a value.
    """
    valued = [(b.chance, *b.lengths) for b in battles if b.chance is not None]
    if not valued:
        error = next((b.error for b in battles if b.error), "")
        if error:
            raise XwinError(f"no row has a preference (first: {error})", "the same command tries again", FAILED_ROWS)
        raise XwinError("no row has a preference", "there is nothing to count")
    chances, one, two = ([[v] for v in column] for column in zip(*valued, strict=True))
    plain = win_rate.win_rate(chances, rounds=rounds, seed=seed)
    fair = win_rate.length_controlled(chances, one, two, rounds=min(rounds, win_rate.LC_ROUNDS), seed=seed)
    lengths = [b.lengths for b in battles]
    return {
        **_plain(asdict(win_rate.head_to_head([v for v, _, _ in valued]))),
        "avg_length": int(sum(two for _, two in lengths) / len(lengths)),
        "avg_length_base": int(sum(one for one, _ in lengths) / len(lengths)),
        "interval": _bounds(plain),
        "length_controlled": {"value": fair.value, **_bounds(fair)},
        "package": _fits(battles, calibration),
    }


def _bounds(e: Estimate) -> dict[str, Any]:
    return _plain({"low": e.low, "high": e.high})


def leaderboard(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of ``evaluate`` under the leaderboard's names; length control only in the package's own form."""
    fit = figures["package"].get(length_control.V1) or {}
    return {
        **figures,
        "length_controlled_winrate": fit.get("value"),
        "lc_standard_error": fit.get("standard_error"),
    }
