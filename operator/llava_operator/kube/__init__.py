"""The API server as such: its client, the kinds that are used, and leadership."""
