"""Text and sound beside images."""
