"""How stages are configured and how their artifacts are sealed."""
