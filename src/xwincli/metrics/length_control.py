"""AlpacaEval 2's length-controlled win rate, number for number as the alpaca_eval package computes it.

For prompt sets of one's own, where the package's calibration rows mean nothing, ``win_rate.length_controlled``
is the one to use.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xwincli.metrics.win_rate import standard_error

Floats = npt.NDArray[np.float64]

FOLDS = 5
GAMED_WEIGHT = 0.1  # of each calibration row: the package's .2, halved because there are two gamed baselines
V1, NOREG, MINIMAL = "length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"
FORMS = (V1, NOREG, MINIMAL)


@dataclass(frozen=True)
class Calibration:
    """What the package fits beside a model's own rows: the baseline against its verbose and concise selves.

    Attributes:
        difficulty: of instruction i of the evaluation set, shape (instructions,).
        gamed_delta: length differences over their standard deviation, shape (gamed rows,).
        gamed_difficulty: of the gamed rows' instructions, shape (gamed rows,).
        gamed_preference: chance that the gamed answer is better, shape (gamed rows,).
    """

    difficulty: Floats
    gamed_delta: Floats
    gamed_difficulty: Floats
    gamed_preference: Floats


@dataclass(frozen=True)
class Weights:
    """The fit logit P = tanh_len·tanh(d / std d) + difficulty·x2 + bias."""

    tanh_len: float
    difficulty: float
    bias: float


@dataclass(frozen=True)
class Fit:
    """A length-controlled win rate and its standard error in percent, the weights, and the C that was chosen."""

    value: float
    standard_error: float
    weights: Weights
    c: float | None


def from_weights(weights: Weights, difficulty: npt.ArrayLike) -> tuple[float, float]:
    """The win rate at equal lengths, 100·mean sigmoid(difficulty·x2 + bias), and the standard error of that mean.

    Args:
        weights: of the fit.
        difficulty: x2 of every row, shape (rows,).
    """
    logit = weights.difficulty * np.asarray(difficulty, dtype=np.float64) + weights.bias
    chance = np.exp(-np.logaddexp(0, -logit))
    return 100 * float(chance.mean()), 100 * standard_error(chance)


def _soft_loss(y: Floats, chance: Floats, label: Floats, weight: Floats) -> float:
    """Mean weighted log loss against soft labels; a row's copy for y = 0 carries the label 1 − p."""
    target = np.where(y == 1, label, 1 - label)
    chance = np.clip(chance, 1e-15, 1 - 1e-15)
    return -float(np.mean(weight * (target * np.log(chance) + (1 - target) * np.log(1 - chance))))


def fit(x: Floats, label: Floats, weight: Floats, c: float | None = None) -> tuple[Floats, float]:
    """L1 logistic regression without intercept on soft labels; C by cross-validation over scikit-learn's ten.

    A row enters twice, y = 1 with weight p and y = 0 with weight 1 − p, both copies in one fold.

    Args:
        x: columns, shape (rows, columns).
        label: within 0..1, shape (rows,).
        weight: shape (rows,).
        c: fit at this C instead.

    Returns:
        The coefficients, shape (columns,), and C.
    """
    import sklearn  # takes seconds, and only a calibrated evaluation needs it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    rows = len(label)
    labels, weights = np.concatenate([label, 1 - label]), np.tile(weight, 2)
    with warnings.catch_warnings(), sklearn.config_context(enable_metadata_routing=True):
        warnings.simplefilter("ignore", ConvergenceWarning)  # few rows at the largest C stop early, there as here
        scorer = make_scorer(_soft_loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            Cs=10 if c is None else [c],
            cv=GroupKFold(FOLDS),
            scoring=scorer.set_score_request(label=True, weight=True),
            l1_ratios=(1,),  # the L1 penalty
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
            use_legacy_attributes=False,
        )
        model.set_fit_request(sample_weight=True)
        model.fit(
            np.tile(x, (2, 1)),
            np.repeat([1, 0], rows),
            sample_weight=labels * weights,
            groups=np.tile(np.arange(rows), 2),
            label=labels,
            weight=weights,
        )
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.C_)


def compatible(
    chances: Sequence[float | None],
    base_lengths: Sequence[int],
    lengths: Sequence[int],
    calibration: Calibration | None = None,
    form: str = V1,
    c: float | None = None,
) -> Fit | None:
    """The length-controlled win rate of the alpaca_eval package (Dubois et al. 2024, arXiv 2404.04475).

    Difficulty is looked up by row number, as the package does: in a file that lacks a row, the rows after it
    have another's. Rows without a value count in std(d) and in the final mean, not in the fit.

    Args:
        chances: that the model's answer is better, in the order of the evaluation set; None has no value.
        base_lengths, lengths: characters (code points) of the baseline's and the model's answers.
        calibration: needed by every form but the minimal.
        form: the package's name: v1 is AlpacaEval 2's, noreg goes without gamed rows, minimal without difficulty too.
        c: fit at this C, such as a published one, instead of choosing it.

    Returns:
        None where there are fewer rows with a value than folds.

    Raises:
        ValueError: the columns differ in length, the calibration is missing or knows fewer rows.
    """
    if form != MINIMAL and (calibration is None or len(calibration.difficulty) < len(chances)):
        raise ValueError(f"{form} needs a calibration that knows {len(chances)} rows")
    label = np.array([np.nan if c is None else c for c in chances], dtype=np.float64)
    known = ~np.isnan(label)
    if known.sum() < FOLDS:
        return None
    d = np.subtract(base_lengths, lengths, dtype=np.float64)
    if d.shape != label.shape:
        raise ValueError(f"{len(label)} chances for {len(d)} pairs of lengths")
    std, one = d.std(ddof=1), np.ones_like(d)
    difficulty = np.zeros_like(d) if form == MINIMAL or calibration is None else calibration.difficulty[: len(d)]
    columns = [np.tanh(d / std) if std else 0 * d, difficulty, one]
    if form == MINIMAL:
        (tanh_len, bias), c = fit(np.stack([columns[0], one], 1)[known], label[known], one[known], c)
        weights = Weights(float(tanh_len), 0.0, float(bias))
    else:
        x, y, w = np.stack(columns, 1)[known], label[known], one[known]
        if form == V1:
            assert calibration is not None
            x, y, w = _with_gamed(x, y, w, calibration)
        coefficients, c = fit(x, y, w, c)
        weights = Weights(*map(float, coefficients))
    return Fit(*from_weights(weights, difficulty), weights, c)


def _with_gamed(x: Floats, y: Floats, w: Floats, calibration: Calibration) -> tuple[Floats, Floats, Floats]:
    """The calibration rows in front of a model's own; their bias column is 0."""
    delta = np.tanh(calibration.gamed_delta)
    gamed = np.stack([delta, calibration.gamed_difficulty, np.zeros_like(delta)], 1)
    y = np.concatenate([calibration.gamed_preference, y])
    return np.concatenate([gamed, x]), y, np.concatenate([np.full(len(gamed), GAMED_WEIGHT), w])
