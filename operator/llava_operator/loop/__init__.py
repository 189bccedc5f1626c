"""What makes passes happen: watches, the queue, the relist, and whether all that is alive."""
