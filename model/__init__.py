"""The network and everything a checkpoint needs to generate text. Imports `common` only."""
