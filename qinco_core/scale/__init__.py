"""Many processes and many machines."""
