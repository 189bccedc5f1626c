"""The dashboards themselves, a module each."""
