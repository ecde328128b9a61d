"""How exact the referee is, and what it leaves behind."""
