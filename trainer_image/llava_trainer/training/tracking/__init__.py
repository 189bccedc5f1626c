"""The curve of training, told to experiment trackers while it trains.

Each tracker has a thread of its own (``follower``) that hands observations (``observations``) to a destination.
Whatever becomes of a destination, training neither waits for it nor ends by it. Only the first rank tells anybody.
"""
