"""The relay program: a drop-in for derper."""
