"""A gang: the ranks of one attempt over all its pods, that start together, find each other and end together.

Named as the schedulers of Kubernetes name it (gang scheduling). Not torch's elastic: nobody joins or is replaced while
it runs. Nothing here knows what the ranks compute.
"""
