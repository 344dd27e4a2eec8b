"""Services in Docker containers: built or loaded once, contained, started in waiting sandboxes, watched by events."""
