"""Talk to a model: in the terminal (`chat.terminal`) and over HTTP (`chat.serve`)."""
