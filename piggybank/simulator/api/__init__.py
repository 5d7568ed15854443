"""What the simulator answers over HTTP: the API of purchases and payouts (A), that of EFT credits (B), and its own controls."""
