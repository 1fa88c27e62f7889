"""All that a checkpoint needs in order to speak. Imports `common` only."""
