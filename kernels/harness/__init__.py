"""What runs inside the referee (trusted) and inside the sandboxed worker (hostile)."""
