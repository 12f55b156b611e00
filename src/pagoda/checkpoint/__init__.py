"""A checkpoint as files that nobody trusts: where it is, what its configuration and the headers of its weights say."""
