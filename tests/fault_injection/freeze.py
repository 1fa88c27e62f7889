"""Imported last by a fork server: keep the garbage collector of its forks from its objects.

The collector writes to every object that it visits. In a fork each of these writes copies a page,
which takes half a second per command once PyTorch is imported.
"""

import gc

gc.freeze()
