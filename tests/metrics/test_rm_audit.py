"""The audit by hand on three pairs, against scikit-learn and scipy on many, and with next to nothing to go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from xwincli.errors import XwinError
from xwincli.metrics import bootstrap, calibration
from xwincli.metrics.rm_audit import audit, correlation, length_places, quantile_places, shares


@dataclass
class Item:
    """What ``train.comparisons.Comparisons`` offers an audit."""

    prompt_id: str
    sides: list[tuple[str, bool]]
    games: list[tuple[int, int, float, float]]
    leads: list[float | None] = field(default_factory=list)
    marks: dict[int, float] = field(default_factory=dict)


def pair(name: str, chosen: str, rejected: str, lead: float | None = None, chance: float = 1.0, **marks) -> Item:
    return Item(name, [(chosen, True), (rejected, True)], [(0, 1, chance, 0.0)], [lead], marks.get("marks", {}))


THREE = [
    pair("a", "aaaa", "bb", 3.0, marks={0: 8, 1: 5}),  # right, and longer
    pair("b", "cc", "dddddd", 1.0, marks={0: 6, 1: 5}),  # right, though shorter
    pair("c", "ee", "ffff", 5.0, marks={0: 9, 1: 4}),  # wrong, with the ruler
]
REWARDS = [[2.0, 1.0], [0.5, -0.5], [0.0, 1.0]]
TOKENS = [[1, 2], [3, 3], [1, 2]]


def near(value: float):
    return pytest.approx(value, abs=1e-6)


def test_three_pairs_by_hand():
    a = audit(THREE, REWARDS, TOKENS)
    assert (a["pairs"], a["ties"], a["prompts"], a["responses"]) == (3, 0, 3, 6)
    assert a["accuracy"]["value"] == near(2 / 3)
    assert a["ruler"]["value"] == near(1 / 3)
    assert a["ruler_tokens"]["value"] == near(0.5 / 3)  # b's tie counts half
    assert a["lead"]["value"] == near(1 / 3)
    bins = {row["name"]: row for row in a["by_length"]}
    assert list(bins) == ["much shorter", "much longer"]
    assert bins["much shorter"]["n"] == 2
    assert (bins["much shorter"]["accuracy"]["value"], bins["much shorter"]["ruler"]["value"]) == (0.5, 0.0)
    assert (bins["much longer"]["accuracy"]["value"], bins["much longer"]["ruler"]["value"]) == (1.0, 1.0)
    assert [(r["from"], r["to"], r["n"], r["accuracy"]["value"]) for r in a["by_margin"]] == [
        (1, 1, 1, 1.0), (3, 3, 1, 1.0), (5, 5, 1, 0.0),
    ]  # fmt: skip
    p = 1 / (1 + np.exp(-1))  # of every pair, for the response the model prefers
    c = a["calibration"]
    assert c["brier"] == near((2 * (1 - p) ** 2 + p**2) / 3)
    assert c["log_loss"] == near(-(2 * np.log(p) + np.log(1 - p)) / 3)
    assert c["expected_error"] == near(p - 2 / 3)
    assert c["overconfidence"]["value"] == near((2 * (p - 1) + p) / 3)
    assert c["temperature"] == near(1 / np.log(2))  # sigmoid(1 / T) = 2 / 3
    assert [(b["n"], b["confidence"]["value"], b["agreement"]["value"]) for b in c["bins"]] == [
        (3, near(p), near(2 / 3))
    ]
    assert a["length"]["characters"]["within"]["pearson"] == near(0)  # 1 - 2 + 1
    assert a["rating"]["pearson"] == near(-0.5 / np.sqrt(1.5 * 17.5))
    assert [(r["from"], r["to"], r["n"]) for r in a["reward_by_length"]] == [(2, 2, 3), (4, 4, 2), (6, 6, 1)]
    assert a["reward_by_length"][0]["reward"]["value"] == near(1.5 / 3)


def many(seed: int = 0, prompts: int = 150):
    """Prompts of two to four responses, every pair compared, the labels right more often the larger the lead."""
    rng = np.random.default_rng(seed)
    items, rewards, tokens = [], [], []
    for i in range(prompts):
        k = int(rng.integers(2, 5))
        scores = (rng.normal(0, 1.5, k) + rng.normal()).tolist()
        games = []
        for x in range(k):
            for y in range(x):
                first = rng.random() < 1 / (1 + np.exp(-0.6 * (scores[x] - scores[y])))
                games.append((x, y, 1.0, 0.0) if first else (y, x, 1.0, 0.0))
        sides = [("x" * int(rng.integers(1, 40)), True) for _ in range(k)]
        items.append(Item(str(i), sides, games, [float(rng.integers(1, 5)) for _ in games]))
        rewards.append(scores)
        tokens.append([len(s) // 2 for s, _ in sides])
    return items, rewards, tokens


def columns(items, rewards):
    lead = np.array([r[a] - r[b] for item, r in zip(items, rewards) for a, b, *_ in item.games])
    return lead, np.ones(len(lead))


def test_calibration_is_scikit_learn_s():
    items, rewards, tokens = many()
    lead, _ = columns(items, rewards)
    c = audit(items, rewards, tokens, rounds=100)["calibration"]
    both = np.concatenate([lead, -lead])
    y = np.repeat([1, 0], len(lead))
    p = 1 / (1 + np.exp(-both))
    assert c["brier"] == near(brier_score_loss(y, p))
    assert c["log_loss"] == near(log_loss(y, p))
    observed, predicted = calibration_curve(y, p, n_bins=20)
    upper = predicted > 0.5
    assert [b["agreement"]["value"] for b in c["bins"]] == near(observed[upper])
    assert [b["confidence"]["value"] for b in c["bins"]] == near(predicted[upper])
    sizes = np.histogram(p, np.linspace(0, 1, 21))[0]
    assert c["expected_error"] == near((np.abs(observed - predicted) * sizes).sum() / len(p))
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(both[:, None], y)
    assert c["temperature"] == pytest.approx(1 / fit.coef_[0, 0], rel=1e-4)
    assert c["temperature"] == pytest.approx(1 / 0.6, rel=0.3)
    assert c["verdict"] == "overconfident"


def test_soft_labels_have_scikit_learn_s_temperature_as_weights():
    rng = np.random.default_rng(1)
    lead, chance = rng.normal(0, 2, 200), rng.choice([0.5, 0.75, 1.0], 200)
    y, weights = np.repeat([1, 0], 200), np.concatenate([chance, 1 - chance])
    lead[:120] = np.abs(lead[:120])  # else they order nothing
    both = np.concatenate([lead, lead])[:, None]
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(both, y, sample_weight=weights)
    assert calibration.temperature(lead, chance)[0] == pytest.approx(1 / fit.coef_[0, 0], rel=1e-4)
    p = 1 / (1 + np.exp(-both[:, 0]))
    assert calibration.log_loss(lead, chance) == pytest.approx(log_loss(y, p, sample_weight=weights))


@pytest.mark.parametrize(
    ("scale", "verdict"), [(3.0, "overconfident"), (1.0, "fits"), (0.2, "underconfident")], ids=str
)
def test_the_verdict_follows_the_scale_of_the_rewards(scale, verdict):
    rng = np.random.default_rng(2)
    items, rewards = [], []
    for i in range(600):
        lead = rng.normal(0, 2)
        items.append(pair(str(i), "a", "b"))
        rewards.append([lead, 0.0])
        if rng.random() > 1 / (1 + np.exp(-lead)):
            items[-1].games = [(1, 0, 1.0, 0.0)]
    scaled = [[scale * r for r in row] for row in rewards]
    c = audit(items, scaled, [[1, 1]] * 600, rounds=400)["calibration"]
    assert c["verdict"] == verdict
    assert c["temperature"] == pytest.approx(scale, rel=0.25)


@pytest.mark.parametrize(
    ("lead", "why"), [([1.0, 2.0], "every pair is ordered as labelled"), ([-1.0, 0.5], "not order the pairs")]
)
def test_no_temperature_has_a_reason(lead, why):
    value, reason = calibration.temperature(np.array(lead), np.ones(2))
    assert value is None
    assert why in reason


def test_correlations_are_scipy_s():
    items, rewards, tokens = many(3)
    a = audit(items, rewards, tokens, rounds=100)
    reward, size = np.concatenate(rewards), np.concatenate([[len(s) for s, _ in i.sides] for i in items])
    overall = a["length"]["characters"]["overall"]
    assert overall == {"pearson": near(pearsonr(reward, size)[0]), "spearman": near(spearmanr(reward, size)[0])}
    centred = [
        np.concatenate([np.array(r) - np.mean(r) for r in rows])
        for rows in (rewards, [[len(s) for s, _ in i.sides] for i in items])
    ]
    within = a["length"]["characters"]["within"]
    assert within["pearson"] == near(pearsonr(*centred)[0])
    assert within["spearman"] == near(spearmanr(*(c.round(9) for c in centred))[0])
    halves = a["length"]["tokens"]["overall"]
    assert halves["pearson"] == near(pearsonr(reward, np.concatenate(tokens))[0])


def test_within_a_prompt_its_level_does_not_count():
    """Two prompts, one easy and long: overall the reward goes with length, within each against it."""
    x, y = np.array([10.0, 9, 11, 0, -1, 1]), np.array([50.0, 51, 49, 5, 6, 4])
    group = np.array([0, 0, 0, 1, 1, 1])
    assert correlation(x, y)["pearson"] > 0.9
    assert correlation(x, y, group) == {"pearson": near(-1), "spearman": near(-1)}
    alone = correlation(np.append(x, 99.0), np.append(y, 99.0), np.append(group, 2))
    assert alone == correlation(x, y, group)


def test_the_order_of_a_pair_does_not_matter():
    """A game read backwards, at the chance that its first side wins: every figure stays."""
    items, rewards, tokens = many(4, prompts=30)
    for i, item in enumerate(items):
        item.games = [(a, b, (0.8, 1.0, 0.5)[i % 3], m) for a, b, _, m in item.games]
    before = audit(items, rewards, tokens, rounds=100)
    for item in items:
        item.games = [(b, a, 1 - chance, m) for a, b, chance, m in item.games]
        item.leads = [-lead for lead in item.leads]
    after = audit(items, rewards, tokens, rounds=100)
    decided = [len(item.games) for i, item in enumerate(items) if i % 3 != 2]
    assert before["pairs"] == sum(decided)
    assert before["ties"] == sum(len(item.games) for item in items) - sum(decided)
    assert _close(after, before)


def _close(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_close(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_close, one, two))
    return one == (pytest.approx(two, abs=2e-6) if isinstance(two, float) else two)


def test_shares_draw_whole_prompts():
    rng = np.random.default_rng(5)
    values = rng.random(40)
    mine = shares([(np.arange(40), values), (np.arange(40), 1 - values)], 40, rounds=300, seed=7)
    plain = bootstrap.mean(values, rounds=300, seed=7)
    assert (mine[0].value, mine[0].low, mine[0].high) == pytest.approx((plain.value, plain.low, plain.high))
    assert mine[1].low == pytest.approx(1 - mine[0].high)
    repeated = shares([(np.repeat(np.arange(40), 9), np.repeat(values, 9))], 40, rounds=300, seed=7)[0]
    assert repeated.low == pytest.approx(mine[0].low)  # nine equal pairs of a prompt are no more evidence than one
    uneven = shares([(np.array([0, 0, 0, 1]), np.array([1.0, 1, 1, 0]))], 2, rounds=300)[0]
    assert (uneven.value, uneven.low, uneven.high) == (0.75, 0.0, 1.0)


def test_bins():
    chosen, rejected = np.array([(10, 20), (95, 100), (100, 95), (90, 100), (89, 100), (100, 66), (0, 0)]).T
    assert length_places(chosen, rejected).tolist() == [0, 2, 2, 1, 1, 4, 2]
    assert length_places(rejected, chosen).tolist() == [4, 2, 2, 3, 3, 0, 2]
    assert quantile_places(np.array([1.0, 1, 1, 1, 2, 3]), 3).tolist() == [0, 0, 0, 0, 1, 1]
    assert quantile_places(np.arange(10.0), 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert calibration.places(np.array([0.5, 0.549, 0.56, 0.999, 1.0])).tolist() == [0, 0, 1, 9, 9]


def test_one_pair_says_what_it_cannot_know():
    a = audit([pair("a", "tea", "rain")], [[1.0, 0.0]], [[1, 1]])
    json.dumps(a, allow_nan=False)
    assert a["accuracy"] == {"value": 1.0, "low": None, "high": None}
    assert a["by_margin"] == []
    assert a["rating"] == {"pearson": None, "spearman": None, "why": "no two prompts with several responses"}
    assert a["length"]["tokens"]["overall"]["why"] == "fewer than three responses"
    assert a["calibration"]["temperature"] is None
    assert "ordered as labelled" in a["calibration"]["why"]
    assert a["calibration"]["verdict"] == "unknown"


def test_ties_alone_have_no_accuracy():
    a = audit([pair("a", "tea", "no", 0.0, 0.5), pair("b", "x", "y", 0.0, 0.5)], [[1.0, 0.0], [0.0, 0.0]], [[1, 1]] * 2)
    json.dumps(a, allow_nan=False)
    assert (a["pairs"], a["ties"]) == (0, 2)
    assert a["accuracy"] == {"value": None, "low": None, "high": None}
    assert a["calibration"]["brier"] == near(((1 / (1 + np.exp(-1)) - 0.5) ** 2) / 2)
    assert a["length"]["tokens"]["overall"]["why"] == "one of the two never differs"


def test_what_is_refused():
    with pytest.raises(XwinError, match="no pair"):
        audit([], [], [])
    with pytest.raises(XwinError, match="not a finite number"):
        audit(THREE, [[2.0, float("nan")], *REWARDS[1:]], TOKENS)


def test_seed_and_rounds_move_the_interval():
    items, rewards, tokens = many(6, prompts=40)
    plain, other, fewer = (audit(items, rewards, tokens, **o) for o in ({}, {"seed": 1}, {"rounds": 100}))
    assert plain["accuracy"]["value"] == other["accuracy"]["value"]
    assert len({json.dumps(a["lead"]) for a in (plain, other, fewer)}) == 3
