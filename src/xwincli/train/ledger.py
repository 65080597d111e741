"""What was left out of a training run, by reason: counted, shown, bounded. Nothing is ever cut to fit."""

from __future__ import annotations

from collections.abc import Sequence

from xwincli.console import warn
from xwincli.errors import LIMIT, XwinError

SHOWN = 3  # ids named for each reason


class Ledger:
    """Rows taken in and rows left out.

    Args:
        unit: what is counted, for messages ("conversations", "pairs", …).
        remedies: per reason what a user can do about it.
    """

    def __init__(self, unit: str, remedies: dict[str, str] | None = None) -> None:
        self.unit, self.remedies = unit, remedies or {}
        self.kept = 0
        self.dropped: dict[str, list[str]] = {}

    def keep(self) -> None:
        """Count a row that stays."""
        self.kept += 1

    def drop(self, reason: str, row: str) -> None:
        """Count a row that goes, by its id."""
        self.dropped.setdefault(reason, []).append(row)

    def counts(self) -> dict[str, int]:
        """For the manifest: rows left out, by reason."""
        return {reason: len(rows) for reason, rows in self.dropped.items()}

    def close(self, most: float) -> None:
        """Say what was left out, and stop if that is more than ``most`` of all or leaves nothing.

        Raises:
            XwinError: with exit code 4 where the share is above ``most``, 1 where nothing is left.
        """
        lost = sum(self.counts().values())
        if not lost and self.kept:
            return
        parts = [f"{len(rows)} {reason} ({_some(rows)})" for reason, rows in self.dropped.items()]
        text = f"{lost} of {lost + self.kept} {self.unit} left out: {'; '.join(parts)}"
        hint = "; ".join(self.remedies[reason] for reason in self.dropped if reason in self.remedies)
        if not self.kept:
            raise XwinError(f"no {self.unit} left to train on: {text}" if lost else f"no {self.unit} to train on", hint)
        if lost / (lost + self.kept) > most:
            raise XwinError(f"{text}; that is more than --max-drop {most:g}", hint or "raise --max-drop", LIMIT)
        warn(text)


def _some(rows: Sequence[str]) -> str:
    return ", ".join(rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
