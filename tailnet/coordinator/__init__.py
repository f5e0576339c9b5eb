"""The coordinator: which peers may see each other, and what they are told."""
