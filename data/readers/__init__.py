"""Bytes on disk to raw records."""
