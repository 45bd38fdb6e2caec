"""What this machine, and the processes of a job together, can do, and what stands in the way."""
