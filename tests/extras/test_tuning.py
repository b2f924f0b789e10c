"""Tuning: the choice is the cheapest trial that reaches the recall, and keeps its word."""

import numpy as np
import pytest

from imgsim import BuildLSHTable
from imgsim.evaluation import exact_neighbours, recall_at_k
from imgsim.extras.tuning import plot_tradeoff, tune
from imgsim.search.principal import PLANES


@pytest.fixture(scope="module")
def embeddings():
    """Candidates (600, d) and queries (40, d) round one direction."""
    points = 1 + np.random.default_rng(3).standard_normal((640, 12)).astype(np.float32)
    return points[:600], points[600:]


def test_the_cheapest_that_reaches_the_recall_is_chosen_and_reaches_it(embeddings):
    candidates, queries = embeddings
    index = BuildLSHTable(seed=4).build_from_embeddings(candidates, ids=np.arange(600) * 2)
    tuning = tune(index, queries, recall=0.8, top_k=5)
    good = [trial for trial in tuning.trials if trial.recall >= 0.8]
    assert tuning.best in good and tuning.best.cost == min(trial.cost for trial in good)
    assert {trial.settings["hash_size"] for trial in tuning.trials} == {5, 7, 8}
    chosen = BuildLSHTable(**tuning.best.settings).build_from_embeddings(candidates)
    result = chosen.search(queries, 5)
    assert recall_at_k(result.ids, exact_neighbours(queries, candidates, 5)[0]) == tuning.best.recall
    assert result.candidates_seen.mean() == tuning.best.candidates_seen
    assert tune(index, queries, recall=0.8, top_k=5).best.settings == tuning.best.settings


def test_a_recall_out_of_reach_warns_and_gives_the_highest(embeddings):
    with pytest.warns(UserWarning, match="reached a recall of 1.1") as caught:
        tuning = tune(BuildLSHTable().build_from_embeddings(embeddings[0][:100]), embeddings[1], recall=1.1)
    assert caught[0].filename == __file__
    assert tuning.best.recall == max(trial.recall for trial in tuning.trials)
    labels = [line.get_label() for line in plot_tradeoff(tuning).lines]
    assert labels == [*(f"{bits} bits, {planes} planes" for planes in PLANES for bits in (2, 4, 5)), "chosen"]


def test_no_queries_are_refused(embeddings, refused):
    with refused("queries"):
        tune(BuildLSHTable().build_from_embeddings(embeddings[0]), embeddings[1][:0])
