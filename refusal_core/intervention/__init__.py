"""What changes when a run's direction is ablated or added, beside control directions."""
