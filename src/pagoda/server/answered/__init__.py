"""Carries answers: news from the backend, what has come of a call, how it is written as events."""
