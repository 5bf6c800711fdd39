"""Which bit width each module gets: plans as data, their cost, and the exact solver. No torch."""
