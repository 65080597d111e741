"""Markdown counts by hand, features by hand, and the fit with style against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from xwincli.metrics.bradley_terry import Battle, Battles, strengths
from xwincli.metrics.style import bootstrap, controlled, differences, markdown_counts, standardised

TEXT = """# Title
## Part
####### seven is no header
#no space
1. one
  2. two
- a
* b
+ c
**bold** and __too__ but not **across
lines
```python
# a comment
- not a list
x = "**not bold**"
```
"""


def test_markdown_counts_by_hand() -> None:
    made = markdown_counts(TEXT)
    assert made["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert made["list_count"] == {"ordered": 2, "unordered": 3}
    assert made["bold_count"] == {"**": 1, "__": 1}
    assert not any(sum(c.values()) for c in markdown_counts("").values())


def test_the_codes_text_is_taken_out_wherever_it_stands() -> None:
    """Upstream replaces the text of a block, not the block: the same text outside goes too."""
    assert markdown_counts("```# x\n```\n# x\ny")["header_count"]["h1"] == 0
    assert markdown_counts("```# x\n```\n# y")["header_count"]["h1"] == 1


def test_differences_by_hand() -> None:
    d = differences([[30, 3, 0, 0], [0, 0, 0, 0]], [[10, 0, 11, 0], [0, 0, 0, 0]])
    assert d[0] == pytest.approx([0.5, (3 / 31) / (3 / 31 + 1), -1 / 2, 0])
    assert d[1].tolist() == [0, 0, 0, 0]  # two empty answers
    assert differences([[10, 0, 11, 0]], [[30, 3, 0, 0]])[0] == pytest.approx(-d[0])


def test_standardised_has_deviation_1_and_leaves_a_constant_at_0() -> None:
    d = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    centred, plain = standardised(d, centre=True), standardised(d, centre=False)
    assert centred[:, 0].mean() == pytest.approx(0) and centred[:, 0].std(ddof=1) == pytest.approx(1)
    assert plain[:, 0] == pytest.approx(d[:, 0] / np.sqrt(7)) and (plain[:, 1] == 0).all()
    assert (standardised(d[:1], centre=False) == 0).all()


def drawn(seed: int = 0, n: int = 400) -> tuple[Battles, np.ndarray]:
    """Three models of known strength; one feature pulls with .8, one with nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 2))
    sides = [rng.choice(3, 2, replace=False) for _ in range(n)]
    true = np.array([0.0, 1.0, -1.0])
    logit = [true[a] - true[b] for a, b in sides] + 0.8 * features[:, 0]
    won = rng.random(n) < expit(logit)
    rows = [Battle("xyz"[a], "xyz"[b], float(w)) for (a, b), w in zip(sides, won, strict=True)]
    return Battles.of(rows), features


def test_the_fit_against_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    battles, features = drawn()
    x = np.zeros((400, 3))
    x[range(400), battles.a], x[range(400), battles.b] = 1, -1
    fit = LogisticRegression(fit_intercept=False, C=1e12, tol=1e-12, max_iter=10000)
    fit.fit(np.hstack([x, features]), battles.score)
    ours = controlled(battles, features, anchor=1)
    assert ours.converged and ours.strength[1] == 0
    assert ours.strength == pytest.approx(fit.coef_[0][:3] - fit.coef_[0][1], abs=1e-4)
    assert ours.coefficient == pytest.approx(fit.coef_[0][3:], abs=1e-4)
    assert ours.coefficient[0] == pytest.approx(0.8, abs=0.3) and abs(ours.coefficient[1]) < 0.3


def test_without_style_it_is_bradley_terry() -> None:
    battles, features = drawn()
    fit = controlled(battles, np.zeros_like(features), anchor=0)
    assert fit.strength == pytest.approx(strengths(battles.wins(), anchor=0), abs=1e-6)
    assert (fit.coefficient == 0).all()


def test_a_battle_taken_twice_is_two_battles_and_a_start_only_saves_steps() -> None:
    battles, features = drawn(n=60)
    times = np.arange(60) % 3.0
    rows = np.repeat(np.arange(60), times.astype(int))
    names = battles.models
    again = Battles.of(Battle(names[battles.a[i]], names[battles.b[i]], battles.score[i]) for i in rows)
    order = [again.models.index(m) for m in names]
    once = controlled(battles, features, 0, times=times)
    twice = controlled(again, features[rows], again.models.index(names[0]))
    assert once.strength == pytest.approx(twice.strength[order], abs=1e-7)
    begun = controlled(battles, features, 0, times=times, start=controlled(battles, features, 0))
    assert begun.coefficient == pytest.approx(once.coefficient, abs=1e-7)


def test_a_model_that_always_wins_has_no_fit() -> None:
    battles = Battles.of([Battle("x", "y", 1)] * 5)
    assert not controlled(battles, np.zeros((5, 1)), 1).converged


def test_the_bootstrap_spreads_about_the_fit() -> None:
    battles, features = drawn()
    fit = controlled(battles, features, 0)
    s, c = bootstrap(battles, features, 0, fit, rounds=60, seed=3)
    assert s.shape == (60, 3) and c.shape == (60, 2) and (s[:, 0] == 0).all()
    assert c[:, 0].mean() == pytest.approx(fit.coefficient[0], abs=0.1) and 0.05 < c[:, 0].std() < 0.3
    assert (bootstrap(battles, features, 0, fit, rounds=5, seed=3)[0] == s[:5]).all()
