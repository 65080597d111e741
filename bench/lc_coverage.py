"""How often the interval of the length-controlled win rate holds the truth, on verdicts of a known length bias.

    python bench/lc_coverage.py [--repeats 1000] [--rounds 1000]

A judge prefers the model with chance sigmoid(theta + phi·tanh(d / sd)), d = baseline's length − model's: the truth
is 100·sigmoid(theta). Lengths are log-normal as real answers' are. One prompt is one comparison.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xwincli.console import table
from xwincli.metrics.win_rate import length_controlled

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What is simulated: theta as a win rate at equal lengths, phi, how much longer the model writes, soft verdicts."""

    truth: float
    phi: float = -1.3
    longer: float = 0.0  # mean of log(model's length / baseline's)
    soft: bool = False  # verdicts are chances, as of a judge whose log-probabilities are read

    def lengths(self, rows: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Characters of the baseline's and the model's answers, shape (rows,) each."""
        base = np.exp(rng.normal(7.0, 0.6, rows))
        return np.round(base), np.round(base * np.exp(rng.normal(self.longer, 0.4, rows)))

    def verdicts(self, d: Floats, sd: float, rng: np.random.Generator) -> Floats:
        """1 for each win and 0 for each loss, or a soft value of the same mean, shape (rows,)."""
        theta = np.log(self.truth / (100 - self.truth))
        p = 1 / (1 + np.exp(-(theta + self.phi * np.tanh(d / sd))))
        return rng.beta(p / 2, (1 - p) / 2) if self.soft else (rng.random(len(d)) < p).astype(float)


@dataclass(frozen=True)
class Coverage:
    """Percent of repeats whose interval holds the truth; the mean width of the interval and error of the value."""

    share: float
    width: float
    bias: float


def measure(world: World, rows: int, repeats: int, rounds: int, seed: int = 0) -> Coverage:
    """Simulate ``repeats`` evaluations of ``rows`` prompts, each with a bootstrap of ``rounds``."""
    rng = np.random.default_rng(seed)
    sd = float(np.subtract(*world.lengths(1_000_000, rng)).std())
    found = []
    for repeat in range(repeats):
        base, model = world.lengths(rows, rng)
        y = world.verdicts(base - model, sd, rng)
        columns = ([[float(v)] for v in y], [[int(n)] for n in base], [[int(n)] for n in model])
        e = length_controlled(*columns, rounds=rounds, seed=repeat)
        found.append((e.low <= world.truth <= e.high, e.high - e.low, e.value - world.truth))
    share, width, bias = np.mean(np.array(found, dtype=float), axis=0)
    return Coverage(100 * float(share), float(width), float(bias))


WORLDS = {
    "as good, as long": World(50),
    "as good, longer": World(50, longer=0.3),
    "weaker, longer": World(25, longer=0.3),
    "stronger, longer": World(75, longer=0.3),
    "weak, shorter": World(10, longer=-0.3),
    "weaker, longer, soft": World(25, longer=0.3, soft=True),
}


def main() -> None:
    """Every world at 80 and 805 rows, as one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[80, 805])
    options = parser.parse_args()
    lines = []
    for name, world in WORLDS.items():
        for rows in options.rows:
            c = measure(world, rows, options.repeats, options.rounds)
            about = (f"{world.truth:g}", rows, f"{c.share:.1f}", f"{c.width:.1f}", f"{c.bias:+.2f}")
            lines.append((name, *about))
            print(*lines[-1], sep="\t", flush=True)
    header = ("world", "truth %", "rows", "95 % interval holds it, %", "width", "bias")
    print(f"\n{table(header, lines)}\n{options.repeats} repeats, {options.rounds} resamples each")


if __name__ == "__main__":
    main()
