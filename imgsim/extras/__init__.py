"""What most readers never need, imported only when asked for: sweeps, and what may be done with a run afterwards."""
