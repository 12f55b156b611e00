"""Questions about the cache answered from the code that runs it: plan, simulate, explain, time. No tensors."""
