"""What the tools cost: see scripts/bench."""
