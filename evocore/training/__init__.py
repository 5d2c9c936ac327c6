"""From a resolved config to a trained model: assembly, optimisation, the step and its metrics."""
