"""The collection server's pages and its JSON API: FastAPI over the same service functions."""
