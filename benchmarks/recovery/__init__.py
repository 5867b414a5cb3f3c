"""How fast recovery is, and what each way of recovering is worth."""
