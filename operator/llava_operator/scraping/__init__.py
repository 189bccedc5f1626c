"""Metrics over TLS, for those alone who may read them."""
