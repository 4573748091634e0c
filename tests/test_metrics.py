"""Metrics against trec_eval, pair counting and exhaustive averages."""

import itertools
import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from train.metrics import at_cutoffs, auc, average_precision, curves, interval, random_curves, random_order
from train.ranking import ranks_of, strictly_falling, top_k

CUTOFFS = (1, 3, 5, 20)
TREC = {"map": "map_cut", "precision": "P", "recall": "recall", "hit_rate": "success", "ndcg": "ndcg_cut"}


def some_run(num_queries=12, num_candidates=15, seed=0):
    """A run and its qrels; candidate order is that of the scores."""
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in range(num_queries):
        order = rng.permutation(num_candidates)
        scores = strictly_falling(np.sort(rng.random(num_candidates).astype(np.float32))[::-1])
        run[f"q{query}"] = {f"d{row:02d}": float(score) for row, score in zip(order, scores, strict=True)}
        right = rng.choice(num_candidates, size=rng.integers(1, num_candidates), replace=False)
        qrels[f"q{query}"] = {f"d{row:02d}": 1 for row in right}
    return run, qrels


def hits_of(run, qrels, query):
    return np.array([doc in qrels[query] for doc in run[query]])


def by_definition(hits, k):
    """Every metric at k from its formula; `hits` is the relevance in order of the ranking."""
    num_relevant, head = hits.sum(), hits[:k]
    ranks = np.flatnonzero(hits) + 1
    gains = [1 / math.log2(rank + 1) for rank in range(1, len(hits) + 1)]
    return {
        f"map@{k}": sum((number + 1) / rank for number, rank in enumerate(ranks) if rank <= k) / num_relevant,
        f"precision@{k}": head.sum() / k,
        f"recall@{k}": head.sum() / num_relevant,
        f"hit_rate@{k}": float(head.any()),
        f"ndcg@{k}": sum(np.array(gains[:k])[head]) / sum(gains[: min(k, num_relevant)]),
    }


@pytest.mark.parametrize("k", CUTOFFS)
def test_metrics_at_k_are_their_definitions(k):
    run, qrels = some_run()
    values = at_cutoffs(run, qrels, [k])
    for query in run:
        expected = by_definition(hits_of(run, qrels, query), k)
        assert {name: values[name][query] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("ours", TREC)
def test_metrics_at_k_are_those_of_trec_eval(ours):
    run, qrels = some_run(seed=1)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {f"{TREC[ours]}.1,3,5,20"}).evaluate(run)
    values = at_cutoffs(run, qrels, CUTOFFS)
    for k, query in itertools.product(CUTOFFS, run):
        assert values[f"{ours}@{k}"][query] == pytest.approx(theirs[query][f"{TREC[ours]}_{k}"])


def test_mrr_is_that_of_trec_eval():
    run, qrels = some_run(seed=2)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert at_cutoffs(run, qrels, [1])["mrr"] == pytest.approx({q: theirs[q]["recip_rank"] for q in run})


def test_a_query_that_finds_nothing_relevant_counts_as_zero():
    values = at_cutoffs({"q": {"a": 1.0}}, {"q": {"b": 1}}, [1])
    assert {metric: found["q"] for metric, found in values.items()} == dict.fromkeys(values, 0.0)


def test_average_precision_over_the_whole_ranking_is_that_of_trec_eval():
    run, qrels = some_run(seed=3)
    theirs = {each.query_id: each.value for each in ir_measures.iter_calc([ir_measures.AP], qrels, run)}
    for query in run:
        ranks = np.flatnonzero(hits_of(run, qrels, query)) + 1
        assert average_precision(ranks) == pytest.approx(theirs[query])


# Scores, relevant rows, and what trec_eval (of pytrec_eval-terrier 0.5.11) gave for the order best first, equal scores
# by ascending row: map, recip_rank, map_cut_3, P_3, recall_3, success_3, ndcg_cut_3.
STORED = {
    "tied": ([0.5, 0.9, 0.5, 0.9, 0.1], [0, 3], [0.5833333333, 0.5, 0.5833333333, 0.6666666667, 1, 1, 0.6934264036]),
    "all tied": ([0.2] * 5, [1, 4], [0.45, 0.5, 0.25, 0.3333333333, 0.5, 1, 0.3868528072]),
    "one relevant": ([0.1, 0.4, 0.3, 0.9, 0.2], [2], [*[0.3333333333] * 4, 1, 1, 0.5]),
    "all relevant": ([0.3, 0.1, 0.2], [0, 1, 2], [1, 1, 1, 1, 1, 1, 1]),
    "beyond the cut-off": ([0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [4, 5], [0.2666666667, 0.2, 0, 0, 0, 0, 0]),
    "more relevant than the cut-off": (
        [0.6, 0.5, 0.4, 0.3, 0.2, -0.1],
        [0, 1, 3, 4, 5],
        [0.8766666667, 1, 0.4, 0.6666666667, 0.4, 1, 0.765360637],
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_scores_become_the_values_that_trec_eval_gave(case):
    scores, relevant, expected = STORED[case]
    scores = np.array(scores, dtype=np.float32)
    best = top_k(scores, 3)
    run = {"q": {f"d{row}": float(score) for row, score in zip(best, strictly_falling(scores[best]), strict=True)}}
    values = at_cutoffs(run, {"q": {f"d{row}": 1 for row in relevant}}, [3])
    whole = ranks_of(scores, np.array(relevant))
    mrr = 1 / whole.min()  # the run holds the best three alone
    names = ("map@3", "precision@3", "recall@3", "hit_rate@3", "ndcg@3")
    found = [average_precision(whole), mrr, *(values[name]["q"] for name in names)]
    assert found == pytest.approx(expected, abs=1e-9)
    at_k = curves(whole, 3)
    assert [at_k["map"][-1], at_k["recall"][-1]] == pytest.approx([expected[2], expected[4]], abs=1e-9)


def test_average_precision_by_hand_whatever_the_order_of_ranks():
    assert average_precision(np.array([5, 1, 3])) == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)


@given(st.integers(2, 12), st.data())
def test_auc_is_the_share_of_pairs_in_the_right_order(num_candidates, data):
    ranks = data.draw(st.sets(st.integers(1, num_candidates), min_size=1, max_size=num_candidates - 1))
    wrong = set(range(1, num_candidates + 1)) - ranks
    pairs = [right < other for right in ranks for other in wrong]
    assert auc(np.array(sorted(ranks)), num_candidates) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(("ranks", "expected"), [([1, 2], 1.0), ([3, 4], 0.0), ([1, 4], 0.5)])
def test_auc_by_hand(ranks, expected):
    assert auc(np.array(ranks), 4) == expected


@pytest.mark.parametrize(("ours", "theirs"), [("map", "AP"), ("recall", "R")])
def test_curves_are_those_of_trec_eval_at_every_k(ours, theirs):
    run, qrels = some_run(seed=4)
    measures = {k: ir_measures.parse_measure(f"{theirs}@{k}") for k in range(1, 16)}
    expected = {(m.query_id, m.measure): m.value for m in ir_measures.iter_calc(list(measures.values()), qrels, run)}
    for query in run:
        found = curves(np.flatnonzero(hits_of(run, qrels, query)) + 1, 15)[ours]
        assert found.tolist() == pytest.approx([expected[query, measures[k]] for k in range(1, 16)])


def test_curves_by_hand_have_both_denominators():
    found = curves(np.array([5, 1, 9]), depth=6)  # the third is beyond the last k
    assert found["map"].tolist() == pytest.approx([1 / 3] * 4 + [(1 + 2 / 5) / 3] * 2)
    assert found["map_capped"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3, 1.4 / 3, 1.4 / 3])
    assert found["recall"].tolist() == pytest.approx([1 / 3] * 4 + [2 / 3] * 2)


@pytest.mark.parametrize(("num_relevant", "num_candidates"), [(1, 6), (3, 7), (6, 6)])
def test_curves_of_chance_are_the_average_over_all_orders(num_relevant, num_candidates):
    places = itertools.combinations(range(1, num_candidates + 1), num_relevant)
    every = [curves(np.array(each), num_candidates) for each in places]
    for metric, found in random_curves(num_relevant, num_candidates, num_candidates).items():
        assert found.tolist() == pytest.approx(np.mean([each[metric] for each in every], axis=0).tolist())


def exhaustive(num_relevant, num_candidates, cutoffs):
    """Average every metric over all orders of R relevant and C - R other candidates."""
    values = []
    for places in itertools.combinations(range(num_candidates), num_relevant):
        hits = np.zeros(num_candidates, dtype=bool)
        hits[list(places)] = True
        ranks = np.flatnonzero(hits) + 1
        found = {"map": average_precision(ranks), "mrr": 1 / ranks[0]}
        values.append(found | {name: v for k in cutoffs for name, v in by_definition(hits, k).items()})
    return {name: np.mean([each[name] for each in values]) for name in values[0]}


@pytest.mark.parametrize(("num_relevant", "num_candidates"), [(1, 1), (1, 6), (2, 6), (3, 7), (5, 7), (6, 6), (1, 2)])
def test_random_order_is_the_average_over_all_orders(num_relevant, num_candidates):
    cutoffs = [1, 2, 5, 10]
    found = random_order(num_relevant, num_candidates, cutoffs)
    expected = exhaustive(num_relevant, num_candidates, cutoffs)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_random_auc_is_one_half():
    assert random_order(3, 9, [1])["auc"] == 0.5


@pytest.mark.parametrize("num_relevant", [1, 3, 1000, 199_999, 200_000])
def test_random_order_is_stable_for_a_large_gallery(num_relevant):
    c = 200_000
    found = random_order(num_relevant, c, [1, 10, 1000])
    assert all(0 <= value <= 1 + 1e-7 for name, value in found.items() if name != "median_rank")
    assert found["hit_rate@1"] == pytest.approx(num_relevant / c, rel=1e-4)
    first = 1 + (c - num_relevant) / (num_relevant + 1)  # expected rank of the first relevant image
    assert found["mrr"] >= 1 / first - 1e-6  # Jensen


def test_random_mrr_of_one_relevant_image_is_the_harmonic_mean_rank():
    assert random_order(1, 200_000, [1])["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 200_001)), rel=1e-4)


def test_an_interval_contains_its_mean_and_repeats():
    values = np.random.default_rng(0).random(50)
    first, second = interval(values, 500), interval(values, 500)
    assert first == second
    assert first.low < first.mean < first.high


def test_an_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(size=2000)
    found = interval(values, 1000)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.15)


@pytest.mark.parametrize(("values", "low"), [([], math.nan), ([0.5], math.nan), ([0.5, 0.5], 0.5)])
def test_an_interval_of_too_few_or_equal_values_is_degenerate_without_a_warning(values, low):
    found = interval(np.array(values), 100)
    assert found.num_queries == len(values)
    assert found.low == pytest.approx(low, nan_ok=True)
    assert found.high == pytest.approx(low, nan_ok=True)
