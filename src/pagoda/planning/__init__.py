"""What a model takes of a machine, before it is loaded: facts of the model in, a plan out. No tensors, no torch."""
