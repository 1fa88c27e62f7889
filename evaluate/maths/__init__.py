"""Maths by number: arithmetic and word problems, generated or read from files."""
