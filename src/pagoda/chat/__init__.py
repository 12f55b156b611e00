"""From conversations to the text that a model reads, through a chat template: start at renderer.py."""
