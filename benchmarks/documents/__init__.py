"""What writes the tables and figures of docs/ from raw results."""
