"""Talking in a terminal: line editing, the commands of a chat, and saved conversations."""
