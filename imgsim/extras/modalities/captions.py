"""Captions of rendered leaves, true because the traits are known, in words that vary.

A caption states facts, a dict aspect -> meaning: {"condition": "many rust spots", "background": "soil"}. An aspect
between two meanings is left out: a leaf of middling brightness is neither dark nor pale.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from imgsim.sources.leaves import Traits

Predicate = Callable[[Traits], bool]


def _sick(label: str, low: float = 0, high: float = 1) -> Predicate:
    return lambda traits: traits.label == label and low <= traits.severity <= high


def _between(name: str, low: float, high: float) -> Predicate:
    return lambda traits: low <= getattr(traits, name) <= high


def _tip(degrees: float) -> Predicate:
    return lambda traits: abs((traits.angle - degrees + 180) % 360 - 180) < 30


def _behind(name: str) -> Predicate:
    return lambda traits: traits.background == name


# Aspect -> meaning -> the test whether it is true of a leaf, and the words for it.
MEANINGS: dict[str, dict[str, tuple[Predicate, tuple[str, ...]]]] = {
    "condition": {
        "healthy": (_sick("healthy"), ("that is healthy", "without spots", "without any disease", "in good health")),
        "rust": (_sick("bean_rust"), ("with rust", "with rust spots", "with bean rust")),
        "few rust spots": (_sick("bean_rust", 0.3, 0.6), ("with few rust spots", "with a little rust")),
        "many rust spots": (_sick("bean_rust", 0.7), ("with many rust spots", "full of rust", "covered in rust")),
        "patches": (_sick("angular_leaf_spot"), ("with brown patches", "with angular spots")),
        "few patches": (_sick("angular_leaf_spot", 0.3, 0.6), ("with few brown patches", "with few angular spots")),
        "many patches": (_sick("angular_leaf_spot", 0.7), ("with many brown patches", "with many angular spots")),
    },
    "shade": {
        "dark": (_between("lightness", 0, 0.53), ("dark", "dim")),
        "pale": (_between("lightness", 0.62, 1), ("pale", "bright")),
    },
    "hue": {
        "yellowish": (_between("hue", 0, 0.25), ("yellowish", "yellow-green")),
        "bluish": (_between("hue", 0.3, 1), ("bluish", "blue-green")),
    },
    "colour": {
        "dull": (_between("saturation", 0, 0.48), ("dull", "greyish")),
        "vivid": (_between("saturation", 0.65, 2), ("vivid", "colourful")),
    },
    "background": {
        "soil": (_behind("soil"), ("on soil", "on bare earth")),
        "straw": (_behind("straw"), ("on straw", "on dry stalks")),
        "foliage": (_behind("foliage"), ("among other leaves", "in dense foliage")),
        "stone": (_behind("stone"), ("on stone", "on a grey stone")),
        "paper": (_behind("paper"), ("on paper", "on white paper")),
        "sky": (_behind("sky"), ("against the sky", "before a blue sky")),
    },
    "distance": {
        "close": (_between("scale", 1.15, 2), ("seen close up", "filling the frame")),
        "far": (_between("scale", 0, 0.9), ("seen from afar", "seen whole")),
    },
    "light": {
        "sun": (_between("contrast", 0.7, 1), ("in full sun", "in hard light")),
        "overcast": (_between("contrast", 0, 0.3), ("on a grey day", "in soft light")),
    },
    "pose": {
        "up": (_tip(0), ("pointing up",)),
        "left": (_tip(-90), ("pointing left",)),
        "right": (_tip(90), ("pointing right",)),
    },
}
ADJECTIVES = ("shade", "hue", "colour")
LEAVES = ("leaf", "bean leaf", "leaf of a bean")
OPENINGS = ("", "a photo of ", "this is ", "here is ")


def facts_of(traits: Traits, rng: np.random.Generator | None = None) -> dict[str, str]:
    """Return what is true of a leaf; with a generator a random part of it, as a person would describe it."""
    facts = {}
    for aspect, meanings in MEANINGS.items():
        true = [meaning for meaning, (holds, _) in meanings.items() if holds(traits)]
        if true and (rng is None or rng.random() < 0.5):
            facts[aspect] = true[-1] if rng is None else true[rng.integers(len(true))]
    return facts


def fits(facts: dict[str, str], traits: Traits) -> bool:
    """Tell whether all facts are true of a leaf."""
    return all(MEANINGS[aspect][meaning][0](traits) for aspect, meaning in facts.items())


def caption(facts: dict[str, str], rng: np.random.Generator) -> str:
    """Put facts into words: "a dark bean leaf with many rust spots on soil"."""

    def choose(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    phrases = {aspect: choose(MEANINGS[aspect][meaning][1]) for aspect, meaning in facts.items()}
    adjectives = [phrases.pop(aspect) for aspect in ADJECTIVES if aspect in phrases]
    others = list(phrases.values())
    rng.shuffle(adjectives)
    rng.shuffle(others)
    return choose(OPENINGS) + " ".join(["a", *adjectives, choose(LEAVES), *others])


def unseen_facts(count: int = 20, seed: int = 0) -> list[dict[str, str]]:
    """Choose combinations of condition, adjective and common background that no training caption states."""
    adjectives = [(aspect, meaning) for aspect in ADJECTIVES for meaning in MEANINGS[aspect]]
    combinations = list(product(MEANINGS["condition"], adjectives, ("soil", "straw", "foliage")))
    chosen = [combinations[i] for i in np.random.default_rng(seed).permutation(len(combinations))[:count]]
    return [{"condition": c, aspect: meaning, "background": b} for c, (aspect, meaning), b in chosen]
