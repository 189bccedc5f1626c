"""An attempt of a stage on the run's volume: its folder, what it takes over from earlier ones, and its recorded result.

A pod may outlive its attempt: on a node that was cut off nobody can end it. So an attempt writes into a folder of its
own, by path, and the next one renames that folder away: what the old pod opens, renames or deletes after that fails.
Nothing here knows what a stage computes.
"""
