"""Summaries made from plain text: titles of articles and sections, pseudo-summaries."""
