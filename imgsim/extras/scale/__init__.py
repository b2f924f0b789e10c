"""From one machine to a cluster on Ray Data: the same tables, the same answers."""
