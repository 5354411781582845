"""Training: one loop, and the driver that logs, validates, saves and stops."""
