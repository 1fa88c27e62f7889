"""OpenAI-compatible chat-completions server with continuous batching, and a web page."""
