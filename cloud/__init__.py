"""The fallback service: Open Inference Protocol v2 over HTTP."""
