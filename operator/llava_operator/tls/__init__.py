"""Certificates for what the operator serves, and the upkeep of what is served with them."""
