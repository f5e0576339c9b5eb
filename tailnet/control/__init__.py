"""Control: the protocols between a node and its coordinator."""
