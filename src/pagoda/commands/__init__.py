"""The commands of `pagoda`, one file each: `run(arguments)` does the work and returns the exit status."""
