"""Shared helpers: errors, files, options and the machine.

This package imports no other package of the project.
"""
