"""Model families. The only part of core that needs torch."""
