"""Encoders of texts and sounds, and captions of rendered leaves."""
