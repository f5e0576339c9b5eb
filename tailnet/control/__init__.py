<<<<<<< HEAD
"""Control: the protocols between a node and its coordinator."""
=======
"""The control protocol's transport: yamux and dRPC, for both ends."""
>>>>>>> control
