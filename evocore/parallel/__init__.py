"""The parallel runtime: who the processes are, how work is divided among them, how they exchange it."""
