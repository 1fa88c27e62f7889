"""A run before its first step: its initial checkpoint, its `RunSpec`, its directory."""
