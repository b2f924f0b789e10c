"""The compiled search: the arrays of an index, what is computed on them, and how they are stored."""
