"""Merging an adapter into its base: tensor by tensor, in bounded memory, with a proof at the end."""
