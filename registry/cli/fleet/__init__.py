"""A simulated fleet, for the demo: its day passes in seconds, but every call goes to a real registry."""
