"""What somebody is woken by: alerts, and the limits that an installer sets."""
