"""What happens before the arms: fine-tuning, off-policy pairs, reward model."""
