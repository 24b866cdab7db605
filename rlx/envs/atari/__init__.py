"""Atari games on the emulator of ale-py."""
