"""What runs on the phone: engines, early-exit loop, exit gate, fallback client. No torch."""
