"""A pytest plugin on top of nbval: stored and printed outputs have the same words, and numbers that are close.

Sums are rounded differently on other processors, which turns a bit of a code here and there. So a number with decimals
may differ by one unit of its last digit, or by a thousandth of itself; a percentage without decimals by one. Whole
numbers have to be the same, but for the cells tagged `counts-vary`, in which a projection decides them: there they may
differ by one, or by two per cent.
"""

import re

NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?)(?!\w)")
ROUNDED, VARYING = 1e-3, 0.02  # how far numbers with decimals, and counts, may differ, relative to the stored one
COUNTS_VARY = "counts-vary"
PATIENCE = 300  # seconds that nbval waits for what a cell has printed


def last_digit(number):
    """What one unit of the last digit of a printed number is worth."""
    mantissa, _, exponent = number.rstrip("%").partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def are_close(stored, printed, counts_vary=False):
    """Tell whether two printed numbers are the same but for rounding."""
    if stored.endswith("%") != printed.endswith("%"):
        return False
    old, new = (float(number.rstrip("%")) for number in (stored, printed))
    if re.search(r"[.e%]", stored + printed):
        allowed = max(min(last_digit(stored), last_digit(printed)), ROUNDED * abs(old))
    else:
        allowed = max(1, VARYING * abs(old)) if counts_vary else 0
    return abs(old - new) <= allowed * (1 + 1e-9)


def are_alike(stored, printed, counts_vary=False):
    """Tell whether two texts have the same words, whatever the blanks between them, and numbers that are close."""
    old, new = (NUMBER.split(text) for text in (stored, printed))
    words = [[" ".join(text.split()) for text in parts[::2]] for parts in (old, new)]
    pairs = zip(old[1::2], new[1::2], strict=False)
    return words[0] == words[1] and all(are_close(*pair, counts_vary) for pair in pairs)


def adopt_close_numbers(cell, printed, stored):
    """Replace printed outputs of an nbval cell with the stored ones if they are alike."""
    counts_vary = COUNTS_VARY in cell.cell.metadata.get("tags", [])
    pairs = list(zip(printed, stored, strict=False))
    for new, old in pairs + [(new.get("data", {}), old.get("data", {})) for new, old in pairs]:
        for key in new.keys() & old.keys():
            texts = [cell.sanitize(output[key]) for output in (old, new)]
            if all(isinstance(text, str) for text in texts) and are_alike(*texts, counts_vary):
                new[key] = old[key]


def pytest_itemcollected(item):
    """Let nbval's cells compare what remains after close numbers have been adopted."""
    if item.path.suffix == ".ipynb":
        strictly = item.compare_outputs

        def compare_outputs(printed, stored):
            printed = [output for output in printed if output.get("name") != "stderr"]  # progress bars
            adopt_close_numbers(item, printed, stored)
            return strictly(printed, stored)

        item.compare_outputs = compare_outputs
        item.output_timeout = PATIENCE
