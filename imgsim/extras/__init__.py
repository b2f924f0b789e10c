"""What most readers never need, imported only when asked for."""
