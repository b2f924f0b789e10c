"""Many settings side by side, and which of them to choose."""
