"""Conversations to ids: the chat template, and its translation to and from Jinja."""
