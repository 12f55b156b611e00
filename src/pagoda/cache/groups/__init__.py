"""What one layer group keeps of sequences: pages of tokens, recurrent states, or what an encoder made."""
