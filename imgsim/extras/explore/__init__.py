"""A page, and a widget, that show locality-sensitive hashing at work on your images."""
