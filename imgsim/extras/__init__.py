"""What most readers never need, imported only when asked for: sweeps, what may be done with a run, other modalities."""
