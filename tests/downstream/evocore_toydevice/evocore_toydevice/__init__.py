"""The toy device for evocore."""
