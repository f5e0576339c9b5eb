"""What the relay answers over plain HTTP: probes, home page, debug."""
