"""A tournament of models: answers to the same questions, compared in pairs, and rated."""
