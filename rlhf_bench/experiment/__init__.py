"""Many arms: stages before them, the comparison, its scheduler, tuning, and tracking in MLflow."""
