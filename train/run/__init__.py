"""A run before its first step: what it starts from, its description, its directory."""
