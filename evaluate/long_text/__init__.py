"""How far back in a long text a model makes use of its past."""
