"""Backups and restores, with real servers, real payments of the simulator, real targets."""
