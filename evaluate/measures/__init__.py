"""The measurements behind `python -m evaluate.NAME`: load, run, print, write."""
