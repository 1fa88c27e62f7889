"""Search for passages: an index of text on disk, that grows and is searched without a network."""
