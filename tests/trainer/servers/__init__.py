"""Real servers on loopback that fetching is tested against: files, a hub, S3, a proxy. All but the proxy speak TLS."""
