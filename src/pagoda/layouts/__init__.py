"""What a token leaves behind in a layer: frozen data, no tensors."""
