"""A detector as a service: samples come over HTTP, and what is said of them goes back as JSON."""
