"""Near-duplicates in a folder of images."""
