"""What makes a step fast and small, and what is known beforehand about its memory and time."""
