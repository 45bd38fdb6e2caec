"""One static HTML page of what a folder holds."""
