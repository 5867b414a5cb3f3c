"""What a small mixture of experts loses without neurons of its experts, and without experts."""
