"""HTTP for anybody who can reach a port, within limits."""
