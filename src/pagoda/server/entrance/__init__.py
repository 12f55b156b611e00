"""Lets HTTP requests in: connections, who asks, how much is sent, whether it is JSON."""
