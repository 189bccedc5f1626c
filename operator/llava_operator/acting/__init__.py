"""What a pass does: it reads, has decided, and writes."""
