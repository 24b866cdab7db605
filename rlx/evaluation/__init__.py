"""Playing with a trained policy, and measuring it; nothing here prints."""
