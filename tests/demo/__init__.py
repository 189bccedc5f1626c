"""The demo: one LlavaFineTune on a real cluster, from `kubectl apply` to a judged model."""
