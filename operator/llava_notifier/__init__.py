"""Sends one notification: the process of a pod that has nothing else to do.

It knows nothing of runs, Kubernetes and the operator: it is handed a body, an address and a Secret, and says in one
line what has become of them. What is in the Secret stands in no line.
"""
