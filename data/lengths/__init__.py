"""The survey of lengths that one makes before choosing a row length: `python -m data.lengths`."""
