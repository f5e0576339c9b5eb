"""The control protocol's transport: yamux and dRPC, for both ends."""
