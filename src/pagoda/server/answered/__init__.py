"""How a call is answered: news from the backend, what has come of it, and how it is written."""
