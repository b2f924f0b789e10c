"""Summarise a sweep's table: curves to compare, the Pareto front, and a recommendation in words."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from imgsim.extras.runs.settings import DEFAULTS
from imgsim.sources.names import split_checkpoint

CURVE_SETTINGS = ("hash_size", "num_tables", "seed", "top_k", "batch_size")  # vary along a curve, or do not matter
MEASURES = {"recall": "recall_at_10", "seen": "candidate_fraction"}
MEASURES |= {"precision": "label_precision_at_5", "exact_precision": "exact_label_precision_at_5"}


def short_names(values: pd.Series) -> pd.Series:
    """Cut paths and Hub ids (n,) down to their last part, if that still tells them apart."""

    def last_part(text: str) -> str:
        prefix, name = split_checkpoint(text)
        return prefix + name.rpartition("/")[2]

    last = values.astype(str).map(last_part)
    return last if last.nunique() == values.nunique() else values.astype(str)


def series_labels(table: pd.DataFrame) -> pd.Series:
    """Name the curve of each point (n,): by its checkpoint, or by all settings that differ between curves."""
    settings = [name for name in DEFAULTS if name in table and name not in CURVE_SETTINGS]
    parts = []
    for name in [name for name in settings if table[name].nunique() > 1] or ["checkpoint"]:
        named = name in ("dataset", "checkpoint")
        parts.append(short_names(table[name]) if named else f"{name} " + table[name].astype(str))
    return pd.concat(parts, axis=1).agg(", ".join, axis=1)


def mean_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Average the measures of a sweep's points over seeds.

    Returns:
        A row per curve, hash_size and num_tables: MEASURES, the lowest and highest recall, and the number of seeds.
    """
    table = table.assign(series=series_labels(table))
    for name, column in MEASURES.items():
        table[name] = table[column].astype(float)  # null if there are no labels
    groups = table.groupby(["dataset", "series", "hash_size", "num_tables"], as_index=False, sort=False)
    means = groups.agg(**{name: (name, "mean") for name in MEASURES})
    return means.merge(groups.agg(lowest=("recall", "min"), highest=("recall", "max"), seeds=("recall", "count")))


def pareto_mask(cost, gain) -> np.ndarray:
    """Tell which points (n,) no other point beats, by as much gain for less cost or more gain for the same cost."""
    cost, gain = np.asarray(cost), np.asarray(gain)
    as_good = (cost[:, None] >= cost) & (gain[:, None] <= gain)
    better = (cost[:, None] > cost) | (gain[:, None] < gain)
    return ~(as_good & better).any(axis=1)


def recommend(means: pd.DataFrame, recall: float) -> str:
    """Recommend, in a sentence per dataset, the best checkpoint, and with it the settings that see fewest candidates.

    Args:
        means: from `mean_over_seeds`; a checkpoint is as good as the labels of its exact neighbours.
        recall: the share of the true neighbours that the settings must find.
    """
    return "\n".join(recommend_one(part, recall) for _, part in means.groupby("dataset", sort=False))


def recommend_one(means: pd.DataFrame, recall: float) -> str:
    """Recommend a checkpoint and settings for one dataset, see `recommend`."""
    exact = means.groupby("series", sort=False)["exact_precision"].first().sort_values(ascending=False, kind="stable")
    if labelled := exact.notna().all():
        text, chosen = "Take ", means[means["series"].isin(exact.index[exact == exact.iloc[0]])]
    else:
        text, chosen = "Without labels only the gallery tells which checkpoint is best; by the work alone, take ", means
    reaching = chosen[chosen["recall"] >= recall]
    if len(reaching):
        best = reaching.sort_values(["seen", "num_tables"], kind="stable").iloc[0]
    else:
        best = chosen.sort_values(["recall", "seen"], ascending=[False, True], kind="stable").iloc[0]
    text += f"{best.series} with {best.hash_size} bits and {best.num_tables} tables: it finds {best.recall:.0%} of the "
    text += f"true neighbours ({best.lowest:.0%} at worst, {best.seeds} seeds)" if best.seeds > 1 else "true neighbours"
    text += f", looking at {best.seen:.0%} of the candidates"
    if labelled:
        text += f", and {best.precision:.0%} of its first five matches have the query's label"
        others = exact[exact < exact.iloc[0]]
        if len(others):
            text += f" (exact search: {exact.iloc[0]:.0%}, with {others.index[0]} {others.iloc[0]:.0%})"
    if not len(reaching):
        text += f". No settings reach a recall of {recall:.0%}: try fewer bits, more tables or more probes"
    return escape(f"{text}.", quote=False)  # shown as Markdown, in which a name could hold what a browser executes
