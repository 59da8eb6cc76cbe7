"""Our drivers and front-end against back-ends that nobody here wrote."""
