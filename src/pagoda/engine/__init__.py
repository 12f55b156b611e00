"""From requests to tokens: scheduling, the forward pass, sampling."""
